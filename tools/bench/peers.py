"""What `bench.speed` measures: how the product and its peers train and generate.

Each function works in a folder that holds params.yaml and data/prepared, and returns the seconds
from the first step or prompt to the last, the poems, and of a generation the tokens of each answer.
Peers open models and write prompts by the product's own code, so that all meet the same weights and
the same tokens; what trains and generates is Transformers', TRL's, Unsloth's.
"""

import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verse.params import Params
from verse.poem import read_poems
from verse.speed import Stopwatch

TRAINING, PROMPTS = "data/prepared/train.jsonl", "data/prepared/test.jsonl"
ADAPTER = "models/adapter"  # the product's, with which all generate
BATCH, WIDTH = 16, 256  # prompts together where a peer takes many; tokens the notebook pads to
Numbers = dict[str, Any]


def run_stage(*words: str) -> None:
    """As `python -m stages.<word> ...` does, in this process."""
    name = f"stages.{words[0]}"
    sys.argv = [name, *words[1:]]
    runpy.run_module(name, run_name="__main__")


def product_trains(p: Params) -> Numbers:
    run_stage("train")
    return measured("train") | {"poems": len(read_poems(TRAINING)) * p.train.epochs}


def product_generates(p: Params) -> Numbers:
    from verse.generation import candidates

    tokens: dict[Any, int] = {}
    finish = candidates.finish

    def count(key: Any, token: int) -> None:
        tokens[key] = tokens.get(key, 0) + 1

    candidates.finish = lambda *task, **settings: finish(*task, **settings, on_token=count)
    run_stage("generate", "tuned")
    return measured("generate") | {"poems": len(tokens), "tokens": list(tokens.values())}


def measured(stage: str) -> Numbers:
    return {"seconds": json.loads(Path("metrics/speed.json").read_text())[stage]["seconds"]}


def notebook_trains(p: Params) -> Numbers:
    opening, model = opened(p, four_bit=True)
    if getattr(model, "is_loaded_in_4bit", False):  # not on a CPU
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    changes = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": max(1, p.train.batch_size // 4),
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    }
    return trained(p, opening, adapted(p, model), changes, width=WIDTH)


def notebook_generates(p: Params) -> Numbers:
    return generated(p, *opened(p, four_bit=True, adapter=ADAPTER), batch=1)


def trainer_trains(p: Params) -> Numbers:
    opening, model = opened(p)
    return trained(p, opening, adapted(p, model), {})


def trainer_generates(p: Params) -> Numbers:
    return generated(p, *opened(p, adapter=ADAPTER), batch=BATCH)


def trl_trains(p: Params) -> Numbers:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    opening, model = opened(p)
    examples = rows(opening)
    mean = sum(len(row["input_ids"]) for row in examples) / len(examples)
    changes = {
        "packing": True,
        "max_length": round(mean * p.train.batch_size),
        "per_device_train_batch_size": 1,
        "gradient_checkpointing": False,
    }
    return timed(
        p,
        len(examples),
        SFTTrainer,
        model=adapted(p, model),
        args=SFTConfig(**arguments(p, opening) | changes),
        train_dataset=Dataset.from_list(examples),
        processing_class=opening.tokenizer,
    )


def unsloth_opened(p: Params, name: str) -> tuple[Any, Any, Any]:
    from unsloth import FastLanguageModel  # before Transformers, which it changes

    from verse.model.opening import open_model

    opening = open_model(p.model, p.machine, seed=p.seed)
    any_kernel()
    model, _ = FastLanguageModel.from_pretrained(
        name, max_seq_length=1024, dtype=opening.dtype, load_in_4bit=True
    )
    return opening, model, FastLanguageModel


def unsloth_trains(p: Params) -> Numbers:
    opening, model, unsloth = unsloth_opened(p, p.model.name)
    from verse.model.layers import linear_layers

    lora = p.train.lora
    targets = lora.target_modules
    if targets == "all-linear":
        targets = sorted({name.rsplit(".")[-1] for name in linear_layers(model)})
    model = unsloth.get_peft_model(
        model,
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_gradient_checkpointing="unsloth",
        random_state=p.seed,
    )
    return trained(p, opening, model, {})


def unsloth_generates(p: Params) -> Numbers:
    opening, model, unsloth = unsloth_opened(p, ADAPTER)
    unsloth.for_inference(model)
    return generated(p, opening, model, batch=BATCH)


@dataclass(frozen=True)
class Entry:
    """A row of the table."""

    job: str
    contender: str
    way: str
    work: Callable[[Params], Numbers]
    package: str | None = None
    """That must be installed."""


MANY = f"{BATCH} prompts at once"
ENTRIES = (
    Entry("train", "verse", "the stage", product_trains),
    Entry(
        "train", "notebook", "4 poems × 4, padded to 256, checkpointing, 4 bits", notebook_trains
    ),
    Entry("train", "Transformers", "Trainer, 16 poems padded to the longest", trainer_trains),
    Entry("train", "TRL", "SFTTrainer, 16 poems packed", trl_trains, "trl"),
    Entry("train", "Unsloth", "16 poems, its checkpointing, 4 bits", unsloth_trains, "unsloth"),
    Entry("generate", "verse", "the stage", product_generates),
    Entry("generate", "notebook", "one by one, adapter apart, 4 bits", notebook_generates),
    Entry("generate", "Transformers", f"generate, {MANY}", trainer_generates),
    Entry("generate", "Unsloth", f"generate, {MANY}, 4 bits", unsloth_generates, "unsloth"),
)


def any_kernel() -> None:
    """Peers need not give up kernels for the product's sake, which is reproducible."""
    import torch

    torch.use_deterministic_algorithms(False)


def opened(p: Params, *, four_bit: bool = False, adapter: str | None = None) -> tuple[Any, Any]:
    """All of a model but its weights, and these: 4 bits stay so on a GPU alone. The adapter is
    merged into plain weights, and stands beside others."""
    from verse.model.memory import MemoryPlan
    from verse.model.opening import open_model

    opening = open_model(p.model, p.machine, seed=p.seed)
    any_kernel()
    return opening, opening.load(MemoryPlan(dequantized=not four_bit), [], adapter)


def adapted(p: Params, model: Any) -> Any:
    """With PEFT's own adapter, of the same settings as the product's."""
    from peft import LoraConfig, get_peft_model

    lora = p.train.lora
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )
    return get_peft_model(model, config)


def rows(opening: Any) -> list[dict[str, list[int]]]:
    """The training poems as Transformers wants them, the loss on the answers only."""
    return [
        {"input_ids": e.prompt + e.completion, "labels": [-100] * len(e.prompt) + e.completion}
        for e in opening.encode(read_poems(TRAINING))
    ]


def arguments(p: Params, opening: Any) -> dict[str, Any]:
    """Of a Trainer: the settings of params.yaml, and steps without anything in between."""
    return {
        "output_dir": "trainer",
        "num_train_epochs": p.train.epochs,
        "per_device_train_batch_size": p.train.batch_size,
        "learning_rate": p.train.learning_rate,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": p.train.max_grad_norm,
        "weight_decay": p.train.weight_decay,
        "bf16": str(opening.dtype) == "torch.bfloat16",
        "fp16": str(opening.dtype) == "torch.float16",
        "use_cpu": opening.device.type == "cpu",
        "dataloader_pin_memory": opening.device.type == "cuda",
        "remove_unused_columns": False,
        "seed": p.seed,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def trained(
    p: Params, opening: Any, model: Any, changes: dict[str, Any], width: int | None = None
) -> Numbers:
    """With Transformers' Trainer. width: tokens that all poems are padded or cut to."""
    import torch
    from transformers import Trainer, TrainingArguments

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        length = width or max(len(row["input_ids"]) for row in batch)
        filled = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in batch]
        padding = {"input_ids": opening.tokenizer.eos_token_id, "labels": -100, "attention_mask": 0}
        return {
            key: torch.tensor([(row[key] + [fill] * length)[:length] for row in filled])
            for key, fill in padding.items()
        }

    examples = rows(opening)
    return timed(
        p,
        len(examples),
        Trainer,
        model=model,
        args=TrainingArguments(**arguments(p, opening) | changes),
        data_collator=collate,
        train_dataset=examples,
    )


def timed(p: Params, count: int, trainer: type, **settings: Any) -> Numbers:
    """Train, by a clock that starts with the first step as the product's does."""
    from transformers import TrainerCallback

    watch = Stopwatch()

    class Started(TrainerCallback):
        def on_step_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step == 0:
                watch.restart()

    trainer(callbacks=[Started()], **settings).train()
    return watch.numbers(1) | {"poems": count * p.train.epochs}


def generated(p: Params, opening: Any, model: Any, batch: int) -> Numbers:
    """By Transformers' generate, so many prompts at once, padded on the left."""
    import torch
    from transformers import GenerationConfig

    from verse.generation.answers import end_tokens

    end, ends = opening.tokenizer.eos_token_id, end_tokens(model, opening.tokenizer)
    decoding = p.decoding.model_dump(exclude={"candidates"})
    if not p.decoding.do_sample:
        decoding = {k: v for k, v in decoding.items() if k not in ("temperature", "top_p", "top_k")}
    config = GenerationConfig(eos_token_id=ends, pad_token_id=end, **decoding)
    prompts = opening.encode_prompts(read_poems(PROMPTS), p.decoding.max_new_tokens)
    counts = []
    watch = Stopwatch()
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        length = max(map(len, some))
        ids = torch.tensor([[end] * (length - len(ids)) + ids for ids in some])
        mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in some])
        found = model.generate(
            input_ids=ids.to(opening.device),
            attention_mask=mask.to(opening.device),
            generation_config=config,
        )
        for answer in found[:, length:].tolist():
            ended = [place for place, token in enumerate(answer, 1) if token in ends]
            counts.append(min([*ended, len(answer)]))
    return watch.numbers(1) | {"poems": len(prompts), "tokens": counts}

"""Train a LoRA adapter on the base model, its weights rounded to 4 bits (QLoRA).

    python -m stages.train

Reads data/prepared/{train,validation}.jsonl and the base model. Writes models/adapter (PEFT's
own format), metrics/train.json and the loss curves under metrics/plots. A killed training
goes on from its last checkpoint, which lives in the user's cache. Where there are several
GPUs, the stage runs once on each of them.
"""

import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

from verse import params, speed
from verse.errors import run
from verse.files import (
    cache_dir,
    digest,
    read_jsonl,
    replacing,
    together,
    write_json,
    write_text,
)

TRAIN, VALIDATION = "data/prepared/train.jsonl", "data/prepared/validation.jsonl"


def main() -> None:
    p = params.read("params.yaml", "seed", "model", "train")
    poems, held_out = read_jsonl(TRAIN), read_jsonl(VALIDATION)

    from verse import distributed  # heavy

    distributed.run(lambda: train(p, poems, held_out), p.model.processes, p.model.device)


def train(p: SimpleNamespace, poems: list[dict], held_out: list[dict]) -> None:
    from verse.model import adapters, distributed, encoding, loading, memory
    from verse.training import checkpoint, loop

    chief = distributed.rank() == 0
    loading.deterministic(p.seed, p.model.threads)
    device = loading.choose_device(p.model.device)
    dtype = loading.choose_dtype(p.model.dtype, device)
    tokenizer = encoding.load_tokenizer(p.model)
    examples, validation = (
        [encoding.encode(tokenizer, poem["prompt"], poem["completion"]) for poem in part]
        for part in (poems, held_out)
    )

    mode, reason = memory.for_training(
        p.model,
        p.train.memory,
        device,
        dtype,
        poems=math.ceil(p.train.batch_size / distributed.size()),
        tokens=max(len(e.prompt) + len(e.completion) for e in examples),
    )
    if chief:
        print(f"memory: {mode}, {reason}", flush=True)
    base = loading.load_model(p.model, device, dtype, expanded=mode == "fast")
    loading.check_tokens(base, tokenizer, (e.prompt + e.completion for e in examples + validation))
    model = adapters.add_adapter(base, p.train.lora, p.model.name, p.model.revision, seed=p.seed)
    plan = loop.choose_plan(mode, device, dtype, p.train, examples + validation)

    key = checkpoint.fingerprint(
        {
            "model": p.model,
            "train": p.train,
            "seed": p.seed,
            "device": device.type,
            "plan": plan,
            "processes": distributed.size(),
        },
        [Path(TRAIN), Path(VALIDATION), *loading.files(p.model.name), *checkpoint.loaded_code()],
    )
    checkpoints = checkpoint.Checkpoints(cache_dir() / "checkpoints", key)
    if chief:
        checkpoints.remove_old()
    watch = speed.Stopwatch()
    curves = loop.train(
        model,
        examples,
        validation,
        p.train,
        seed=p.seed,
        plan=plan,
        checkpoints=checkpoints,
    )
    if not chief:
        return
    numbers = watch.numbers(len(poems) * p.train.epochs)

    metrics = summary(curves, model)
    facts = {
        "Training": asdict(p.train),
        "Data": {"poems": len(poems), "sha256": digest(TRAIN)},
        "Losses": metrics,
    }
    with together():
        with replacing("models/adapter") as folder:
            card = adapters.model_card(p.model.name, p.model.revision, facts)
            adapters.save_adapter(model, folder, card)
        for name, points in (("train", curves.train), ("validation", curves.validation)):
            rows = [f"{point['step']},{point['loss']}" for point in points]
            write_text(f"metrics/plots/{name}_loss.csv", "\n".join(["step,loss", *rows]) + "\n")
        write_json("metrics/train.json", metrics)
    speed.record("metrics/speed.json", "train", numbers)
    checkpoints.clear()
    before, after = metrics["before"], metrics["after"]
    print(
        f"{metrics['steps']} steps; validation perplexity {before['perplexity']} before, "
        f"{after['perplexity']} after"
    )


def summary(curves, model) -> dict:
    """What metrics/train.json holds. Losses in nats; perplexity is per token."""
    first, last = curves.validation[0], curves.validation[-1]
    before, after = (
        {
            "loss": point["loss"],
            "loss_per_character": point["loss_per_character"],
            "perplexity": round(math.exp(point["loss"]), 2),
        }
        for point in (first, last)
    )
    trainable = sum(w.numel() for w in model.parameters() if w.requires_grad)
    return {
        "before": before,
        "after": after,
        "steps": last["step"],
        "trainable_parameters": trainable,
    }


if __name__ == "__main__":
    run(main)

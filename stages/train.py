"""Train a LoRA adapter on the base model, its weights rounded to 4 bits (QLoRA).

    python -m stages.train

Reads data/prepared/{train,validation}.jsonl and the base model. Writes models/adapter (PEFT's
own format), metrics/train.json and the loss curves under metrics/plots, which grow meanwhile, and
are told to what machine.report_to names. A killed training goes on from its last checkpoint, which
lives in the user's cache. Where there are several GPUs, the stage runs once on each of them.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verse import params, paths, reporting, speed
from verse.errors import run
from verse.files import cache_dir, digest, replacing, write_json, write_text
from verse.fingerprint import fingerprint
from verse.params import Params
from verse.poem import Poem, read_poems

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from verse.training.loop import Curves
    from verse.training.proof import Proof

ENOUGH = 1024  # poems that repay the start of a process


def main() -> None:
    p = params.read()
    poems, held_out = (read_poems(path) for path in (paths.TRAIN, paths.VALIDATION))

    from verse.model import distributed  # heavy

    busy = len(poems) * p.train.epochs // ENOUGH
    distributed.run(lambda: train(p, poems, held_out), p.machine, busy)


def train(p: Params, poems: list[Poem], held_out: list[Poem]) -> None:
    from verse.model import adapters, distributed, loading, memory, roundtrip
    from verse.model.opening import open_model
    from verse.training import checkpoint, curves, loop, packing
    from verse.training.micro_batches import choose_plan

    is_main_process = distributed.rank() == 0
    distributed.check_alike(lambda: fingerprint("train", p, times=False))
    checkpoints = checkpoint.Checkpoints(
        cache_dir() / "checkpoints", fingerprint("train", p), every=p.machine.checkpoint_every
    )
    checkpoints.take()
    opening = open_model(p.model, p.machine, seed=p.seed)
    examples, validation = opening.encode(poems), opening.encode(held_out)
    if is_main_process and (said := roundtrip.tokenless(opening.tokenizer, poems)):
        print(said, flush=True)
    task = loop.Task(examples, validation, p.train, p.seed)
    share = math.ceil(min(p.train.batch_size, len(examples)) / distributed.size())
    tokens = packing.tokens_of_a_pass(examples)
    rank = p.train.lora.r
    ways = opening.ways(lambda sizes: memory.plans_for_training(sizes, share, tokens, rank))
    distributed.say(f"memory: {ways[0]}")
    if is_main_process:
        checkpoints.remove_old()
    watch = speed.Stopwatch()
    growing = curves.Growing(Path(paths.PLOTS))
    settings = {"seed": p.seed, "model": p.model.model_dump(), "train": p.train.model_dump()}
    reports = reporting.Reports(p.machine.report_to if is_main_process else [], settings)

    def live(losses: "Curves") -> None:
        growing(losses)
        reports(vars(losses))

    def work(way: memory.MemoryPlan) -> tuple["Curves", "Proof", "PreTrainedModel"]:
        base = opening.load(way, (e.prompt + e.completion for e in examples + validation))
        if asked := loading.still(base):
            said = ", ".join(f"{name} {value}" for name, value in asked.items())
            distributed.say(
                f"dropout of the model's own is off, train.lora.dropout alone counts: {said}"
            )
        model = adapters.add_adapter(base, p.train.lora, p.model, seed=p.seed)
        steps = list(task.batches())
        plan = choose_plan(way, model, opening.dtype, examples + validation, steps)
        return *loop.train(model, task, plan, checkpoints, watch, live), model

    losses, proof, model = memory.run_with_oom_fallback(
        ways, work, "lower train.lora.r, or take a smaller model"
    )
    if not is_main_process:
        return
    numbers = watch.numbers(len(poems) * p.train.epochs)

    metrics = summary(losses, proof, model)
    facts = {
        "Training": p.train.model_dump(),
        "Data": {"poems": len(poems), "sha256": digest(paths.TRAIN)},
        "Losses": metrics,
    }
    with replacing(paths.ADAPTER) as folder:
        card = adapters.model_card(p.model.name, p.model.revision, facts)
        adapters.save_adapter(model, folder, card)
    for name, points in (("train", losses.train), ("validation", losses.validation)):
        write_text(curves.file_of(Path(paths.PLOTS), name), curves.HEAD + curves.rows(points))
    write_json(paths.TRAINING_FIGURES, metrics)
    speed.store("train", numbers)
    checkpoints.clear()
    before, after = metrics["before"], metrics["after"]
    print(
        f"{metrics['steps']} steps; validation perplexity {before['perplexity']} before, "
        f"{after['perplexity']} after"
    )
    reports(vars(losses))
    reports.close()


def summary(curves: "Curves", proof: "Proof", model: "PreTrainedModel") -> dict[str, Any]:
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
        "proof": proof.rounded(),
    }


if __name__ == "__main__":
    run(main)

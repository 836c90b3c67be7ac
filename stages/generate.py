"""Finish the test poems with the base model, or with the adapter on it.

    python -m stages.generate base
    python -m stages.generate tuned

Reads data/prepared/test.jsonl. Writes data/generated/base.jsonl or tuned.jsonl, rows of
{"input", "answer"}; for the tuned model also results.txt, the homework's hand-in, and results.json,
which its grader reads.
"""

import sys

from verse import params, speed
from verse.errors import UserError, run
from verse.files import read_rows, write_json, write_jsonl, write_text
from verse.fingerprint import fingerprint
from verse.params import Params
from verse.poems.contestants import MODELS, WATCHED

ENOUGH = 1024  # answers that repay the start of a process


def main() -> None:
    which = sys.argv[1] if len(sys.argv) == 2 else ""
    if which not in MODELS:
        raise UserError(f"say which model: python -m stages.generate {' or '.join(MODELS)}")
    p = params.read()
    poems = read_rows("data/prepared/test.jsonl", "instruction", "input")

    from verse.generation.candidates import num_candidates  # heavy
    from verse.model import distributed

    busy = len(poems) * num_candidates(p.decoding) // ENOUGH
    distributed.run(lambda: finish(p, poems, which), p.machine, busy)


def finish(p: Params, poems: list[dict[str, str]], which: str) -> None:
    from verse.generation import candidates
    from verse.generation.answers import Answer
    from verse.model import distributed, memory, sharding
    from verse.model.encoding import common_prefix
    from verse.model.opening import open_model

    is_main_process = distributed.rank() == 0
    distributed.check_alike(lambda: fingerprint(MODELS[which].stage, p, times=False))
    opening = open_model(p.model, p.machine, seed=p.seed)
    share = poems[distributed.rank() :: distributed.size()]
    prompts = opening.encode_prompts(share, p.decoding.max_new_tokens)
    at_once = max(
        1, min(p.machine.batch_size, len(prompts) * candidates.num_candidates(p.decoding))
    )
    own = max(map(len, prompts), default=0) - len(common_prefix(prompts))
    tokens = own + p.decoding.max_new_tokens
    ways = opening.ways(lambda sizes: memory.plans_for_generation(sizes, at_once, tokens))
    if is_main_process:
        print(f"memory: {ways[0]}", flush=True)
    watch = speed.Stopwatch()
    drawn: dict[candidates.Key, Answer] = {}

    def work(way: memory.MemoryPlan) -> list[Answer]:
        model = opening.load(way, prompts, MODELS[which].adapter)
        watch.restart()
        with sharding.in_step(model):
            return candidates.finish(
                model,
                opening,
                share,
                prompts,
                p.decoding,
                seed=p.seed,
                batch_size=way.micro_batch_size,
                drawn=drawn,
            )

    kept = memory.run_with_oom_fallback(
        ways, work, "lower decoding.max_new_tokens, or take a smaller model"
    )
    texts = distributed.gather([one.text for one in kept])
    if not is_main_process:
        return
    speeds = watch.numbers(len(poems))

    rows = [
        {"input": poem["input"], "answer": text} for poem, text in zip(poems, texts, strict=True)
    ]
    lines = [f"{n}. {row['input']}{one_line(row['answer'])}" for n, row in enumerate(rows, 1)]
    predicted = [{"input": row["input"], "predict": row["answer"]} for row in rows]
    write_jsonl(f"data/generated/{which}.jsonl", rows)
    if which == WATCHED:
        write_text("data/generated/results.txt", "\n".join(lines) + "\n")
        write_json("data/generated/results.json", predicted)
    speed.store("metrics/speed.json", MODELS[which].stage, speeds)
    print(f"{len(rows)} poems finished by the {which} model")


def one_line(text: str) -> str:
    return "".join(text.split())


if __name__ == "__main__":
    run(main)

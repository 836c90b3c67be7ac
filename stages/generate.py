"""Finish the test poems with the base model, or with the adapter on it.

    python -m stages.generate base
    python -m stages.generate tuned

Reads data/prepared/test.jsonl. Writes data/generated/base.jsonl or tuned.jsonl, rows of
{"input", "answer"}; for the tuned model also results.txt, the homework's hand-in, and results.json,
which its grader reads.
"""

import sys
from dataclasses import replace
from pathlib import Path

from verse import params, paths, speed
from verse.errors import UserError, run
from verse.files import write_jsonl
from verse.fingerprint import fingerprint
from verse.params import Params
from verse.poem import Poem, read_poems
from verse.poems.contestants import MODELS, WATCHED, write_hand_in

ENOUGH = 2048  # answers of a process that repay its start


def main() -> None:
    which = sys.argv[1] if len(sys.argv) == 2 else ""
    if which not in MODELS:
        raise UserError(f"say which model: python -m stages.generate {' or '.join(MODELS)}")
    p = params.read()
    poems = read_poems(paths.TEST)

    from verse.model import distributed  # heavy

    busy = len(poems) * p.decoding.num_candidates // ENOUGH
    distributed.run(lambda: finish(p, poems, which), p.machine, busy)


def finish(p: Params, poems: list[Poem], which: str) -> None:
    from verse.generation import candidates
    from verse.generation.answers import Answer
    from verse.model import distributed, memory, sharding
    from verse.model.encoding import common_prefix
    from verse.model.opening import open_model

    distributed.check_alike(lambda: fingerprint(MODELS[which].stage, p, times=False))
    opening = open_model(p.model, p.machine, seed=p.seed)
    share = poems[distributed.rank() :: distributed.size()]
    prompts = opening.encode_prompts(share, p.decoding.max_new_tokens)
    drawn_in_all = len(prompts) * p.decoding.num_candidates
    at_once = max(1, min(p.machine.batch_size, drawn_in_all))
    own = max(map(len, prompts), default=0) - len(common_prefix(prompts))
    tokens = own + p.decoding.max_new_tokens
    ways = opening.ways(lambda sizes: memory.plans_for_generation(sizes, at_once, tokens))
    distributed.say(f"memory: {ways[0]}")
    if p.decoding.num_candidates < p.decoding.candidates:
        distributed.say("decoding.candidates: one, since no token is drawn freely")
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
    found = distributed.gather([(one.text, len(one.tokens)) for one in kept])
    if distributed.rank() > 0:
        return
    speeds = watch.numbers(len(poems))

    answers = [replace(poem, rest=text) for poem, (text, _) in zip(poems, found, strict=True)]
    rows = ({"input": one.couplet, "answer": one.rest} for one in answers)
    write_jsonl(f"{paths.GENERATED}/{which}.jsonl", rows)
    if which == WATCHED:
        write_hand_in(Path(paths.GENERATED), answers)
    speed.store(MODELS[which].stage, speeds)
    cut_off = sum(length == p.decoding.max_new_tokens for _, length in found)
    longest = f", {cut_off} of them as long as decoding.max_new_tokens allows" if cut_off else ""
    print(f"{len(answers)} poems finished by the {which} model{longest}")


if __name__ == "__main__":
    run(main)

"""Finish the test poems with the base model, or with the adapter on it.

    python -m stages.generate base
    python -m stages.generate tuned

Reads data/prepared/test.jsonl. Writes data/generated/base.jsonl or tuned.jsonl, rows of
{"input", "answer"}; for the tuned model also results.txt, the homework's hand-in.
"""

import sys
from types import SimpleNamespace

from verse import params, speed
from verse.errors import UserError, run
from verse.files import read_jsonl, together, write_jsonl, write_text


def main() -> None:
    which = sys.argv[1] if len(sys.argv) == 2 else ""
    if which not in ("base", "tuned"):
        raise UserError("say which model: python -m stages.generate base (or tuned)")
    p = params.read("params.yaml", "seed", "model", "decoding", "generate", "train.memory")
    poems = read_jsonl("data/prepared/test.jsonl")

    from verse import distributed  # heavy

    distributed.run(lambda: finish(p, poems, which), p.model.processes, p.model.device)


def finish(p: SimpleNamespace, poems: list[dict], which: str) -> None:
    from verse.generation import answers
    from verse.model import adapters, distributed, encoding, loading, memory

    chief = distributed.rank() == 0
    loading.deterministic(p.seed, p.model.threads)
    device = loading.choose_device(p.model.device)
    dtype = loading.choose_dtype(p.model.dtype, device)
    tokenizer = encoding.load_tokenizer(p.model)
    mode, reason = memory.for_generation(p.model, p.train.memory, device, dtype)
    if chief:
        print(f"memory: {mode}, {reason}", flush=True)
    expanded = mode == "fast" or device.type == "cpu"
    model = loading.load_model(p.model, device, dtype, expanded=expanded)
    if which == "tuned":
        model = adapters.load_adapter(model, "models/adapter", merge=expanded)
    share = [poem["prompt"] for poem in poems[distributed.rank() :: distributed.size()]]
    prompts = (encoding.encode_prompt(tokenizer, prompt) for prompt in share)
    loading.check_tokens(model, tokenizer, prompts)

    watch = speed.Stopwatch()
    texts = answers.answer(
        model,
        tokenizer,
        share,
        p.decoding,
        seed=p.seed,
        batch_size=p.generate.batch_size,
    )
    texts = distributed.gather(texts)
    if not chief:
        return
    numbers = watch.numbers(len(poems))

    rows = [
        {"input": poem["input"], "answer": answer}
        for poem, answer in zip(poems, texts, strict=True)
    ]
    lines = [f"{n}. {row['input']}{one_line(row['answer'])}" for n, row in enumerate(rows, 1)]
    with together():
        write_jsonl(f"data/generated/{which}.jsonl", rows)
        if which == "tuned":
            write_text("data/generated/results.txt", "\n".join(lines) + "\n")
    stage = {"base": "baseline", "tuned": "generate"}[which]
    speed.record("metrics/speed.json", stage, numbers)
    print(f"{len(rows)} poems finished by the {which} model")


def one_line(text: str) -> str:
    return "".join(text.split())


if __name__ == "__main__":
    run(main)

"""Clean the poems, part them into training, validation and test, and write their prompts.

    python -m stages.prepare

Reads data/raw. Writes data/prepared/{train,validation,test}.jsonl, rows of {"input", "output",
"prompt", "completion"}, and metrics/data.json: what was read, dropped and kept.
"""

from collections.abc import Iterable

from verse import params
from verse.errors import run
from verse.files import read_jsonl, replacing, together, write_json, write_jsonl
from verse.model import prompts
from verse.model.encoding import load_tokenizer
from verse.poems import dataset
from verse.poems.lines import FORMS


def main() -> None:
    settings = params.read(
        "params.yaml",
        "seed",
        "prepare",
        "model.name",
        "model.revision",
        "model.cache_dir",
        "model.trust_remote_code",
    )
    wanted = settings.prepare
    raw = {part: read_jsonl(f"data/raw/{part}.jsonl") for part in ("train", "test")}

    train, dropped = dataset.clean(raw["train"])
    test, dropped_test = dataset.clean(raw["test"], dataset.COUPLETS)
    split = dataset.split(
        train,
        test,
        seed=settings.seed,
        test_poems=wanted.test_poems,
        validation_poems=wanted.validation_poems,
        max_train=wanted.max_train,
    )
    parts = {"train": split.train, "validation": split.validation, "test": split.test}

    tokenizer = None
    if prompts.needs_tokenizer(wanted.template):
        tokenizer = load_tokenizer(settings.model)
    prompt = prompts.prompt_writer(wanted.template, tokenizer)

    dropped += dropped_test + split.dropped
    metrics = {
        "read": {part: len(records) for part, records in raw.items()},
        "dropped": {reason: dropped[reason] for reason in dataset.DROPPED},
        "kept": sum(map(len, parts.values())),
        **{part: dataset.describe(poems) for part, poems in parts.items()},
    }
    with together():
        with replacing("data/prepared") as folder:
            for part, poems in parts.items():
                write_jsonl(folder / f"{part}.jsonl", [row(poem, prompt(poem)) for poem in poems])
        write_json("metrics/data.json", metrics)
    show(metrics, parts)


def row(poem: dict, prompt: str) -> dict:
    couplet, rest = poem["input"], poem["output"]
    return {"input": couplet, "output": rest, "prompt": prompt, "completion": rest}


def show(metrics: dict, parts: Iterable[str]) -> None:
    forms = list(FORMS.values())
    print(" " * 10, *forms, "other  poems  characters")  # a Chinese character is two columns wide
    for part in parts:
        counts = metrics[part]
        numbers = "".join(f"{counts[form]:5}" for form in forms)
        print(f"{part:10}{numbers}{counts['other']:6}{counts['poems']:7}{counts['characters']:12}")
    reasons = [f"{count} {reason}" for reason, count in metrics["dropped"].items() if count]
    print("dropped:", ", ".join(reasons) or "none")


if __name__ == "__main__":
    run(main)

"""Choose the embedded poems: train.json and test.json.

    python -m tools.pretrain.embedded

Whole Tang poems of the npm package, in lines of 5 or 7 characters, four or eight of them, in
the proportions in which the package holds them, drawn in an order that depends on nothing but
the poems. No two poems share a line, so no test line stands in a training poem. Poems with a
character that models/mini has no token for are left out.
"""

from pathlib import Path

import yaml
from transformers import AutoTokenizer

from tools.pretrain.corpus import rank
from tools.pretrain.poetry import TANG_EDITION, han_runs, line_keys, poems, whole
from verse.files import write_json

HERE = Path(__file__).parent
EMBEDDED = HERE / "data" / "embedded"
INSTRUCTION = "以下是一首唐詩的第一句話，請用你的知識判斷並完成整首詩。"


def in_shape(text: str) -> bool:
    lines = han_runs(text)
    return (
        whole(text)
        and len(lines) in (4, 8)
        and {len(line) for line in lines} in ({5}, {7})
        and text[len(lines[0]) :: len(lines[0]) + 1] == "，。" * (len(lines) // 2)
    )


def training_row(text: str) -> dict[str, str]:
    couplet = 2 * (len(han_runs(text)[0]) + 1)
    return {"instruction": INSTRUCTION, "input": text[:couplet], "output": text[couplet:]}


def main() -> None:
    params = yaml.safe_load((HERE / "params.yaml").read_text(encoding="utf-8"))
    package = HERE / "data" / params["corpus"]["package"]
    wanted = params["embedded"]["train"] + params["embedded"]["test"]
    chosen, used = [], set()
    tokenizer = AutoTokenizer.from_pretrained(HERE / "data" / "mini")
    known = set(tokenizer.get_vocab())
    texts = {poem["text"] for poem in poems(package, TANG_EDITION)}
    for text in sorted(texts, key=rank):
        keys = line_keys(text)
        if in_shape(text) and known.issuperset(text) and used.isdisjoint(keys):
            used |= keys
            chosen.append(training_row(text))
        if len(chosen) == wanted:
            break
    write_json(EMBEDDED / "test.json", chosen[: params["embedded"]["test"]])
    write_json(EMBEDDED / "train.json", chosen[params["embedded"]["test"] :])


if __name__ == "__main__":
    main()

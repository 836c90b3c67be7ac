"""Fetch the poems that data.source names.

    python -m stages.fetch

Writes data/raw/train.jsonl and test.jsonl, rows of {"instruction", "input", "output"}, and
leaves at data/source what they were read from.
"""

from verse import params
from verse.errors import run
from verse.files import cache_dir, replacing, write_jsonl
from verse.poems import sources


def main() -> None:
    p = params.read()
    poems = sources.fetch(p.data, embedded="data/embedded", cache=cache_dir() / "downloads")
    with replacing("data/raw") as folder:
        write_jsonl(folder / "train.jsonl", poems.train)
        write_jsonl(folder / "test.jsonl", poems.test)
    sources.note_origin(poems.origin, "data/source")

    origin = poems.origin["source"] if isinstance(poems.origin, dict) else poems.origin
    print(f"{len(poems.train)} training and {len(poems.test)} test poems from {origin}")


if __name__ == "__main__":
    run(main)

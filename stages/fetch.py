"""Fetch the poems that data.source names.

    python -m stages.fetch

Writes data/raw/train.jsonl and test.jsonl, rows of {"instruction", "input", "output"}, and
leaves at data/source what they were read from.
"""

from verse import params, paths
from verse.errors import run
from verse.files import cache_dir, note_origin, replacing, write_jsonl
from verse.poems import sources


def main() -> None:
    p = params.read()
    poems = sources.fetch(p.data, embedded=paths.EMBEDDED, cache=cache_dir() / "downloads")
    with replacing(paths.RAW) as folder:
        write_jsonl(folder / "train.jsonl", (poem.row() for poem in poems.train))
        write_jsonl(folder / "test.jsonl", (poem.row() for poem in poems.test))
    note_origin(poems.origin, paths.SOURCE, "data.source")

    origin = poems.origin["source"] if isinstance(poems.origin, dict) else poems.origin
    print(f"{len(poems.train)} training and {len(poems.test)} test poems from {origin}")


if __name__ == "__main__":
    run(main)

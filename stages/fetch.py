"""Fetch the poems that data.source names.

    python -m stages.fetch

Writes data/raw/train.jsonl and test.jsonl, rows of {"instruction", "input", "output"}, and
leaves at data/source a link to what they were read from: a local file or folder, or a
download's address and hashes in data/raw/source.json.
"""

from pathlib import Path

from verse import params, sources
from verse.errors import run
from verse.files import cache_dir, replacing, write_json, write_jsonl


def main() -> None:
    data = params.read("params.yaml", "data").data
    poems = sources.fetch(
        data.source,
        embedded="data/embedded",
        hw5_url=data.hw5_url,
        sha256=data.sha256,
        cache=cache_dir() / "downloads",
    )
    download = isinstance(poems.origin, dict)
    with replacing("data/raw") as folder:
        write_jsonl(folder / "train.jsonl", poems.train)
        write_jsonl(folder / "test.jsonl", poems.test)
        if download:
            write_json(folder / "source.json", poems.origin)
        # Always a link: `dvc exp run` fails where git has a file and the folder a link.
        origin = Path("data/raw/source.json") if download else poems.origin
        sources.record(origin, "data/source")

    shown = poems.origin["source"] if download else origin
    print(f"{len(poems.train)} training and {len(poems.test)} test poems from {shown}")


if __name__ == "__main__":
    run(main)

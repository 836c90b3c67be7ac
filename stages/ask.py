"""Have chat models on servers finish the test poems: ChatGPT, Kimi, any other.

    python -m stages.ask

Reads data/prepared/test.jsonl. Writes data/answers/contestants.json, who was asked, and a folder
each: answers.jsonl, rows of {"input", "answer", "raw", "trimmed", "finish_reason", "unanswered"},
and the homework's hand-in as results.txt and results.json. What was answered once is in the user's
cache and is never asked again.
"""

from pathlib import Path
from typing import Any

from verse import params, paths
from verse.chat.answers import finish
from verse.chat.client import check_secrets
from verse.chat.rounds import counted
from verse.chat.store import Store
from verse.errors import UserError, run
from verse.files import cache_dir, replacing, write_json, write_jsonl
from verse.poem import Poem, read_poems
from verse.poems.contestants import write_hand_in


def main() -> None:
    p = params.read()
    poems = read_poems(paths.TEST)

    for one in p.contestants:  # before the first question
        check_secrets(one, one.name)
    with replacing(paths.ANSWERS) as folder:
        asked = [{"name": one.name, "model": one.model} for one in p.contestants]
        write_json(folder / "contestants.json", asked)
        faults = []
        for one in p.contestants:
            try:
                store = Store(cache_dir() / "answers.sqlite")
                write(folder / one.name, finish(one, poems, store, p.machine))
            except UserError as fault:  # the others are asked still
                faults.append(str(fault))
        if faults:
            raise UserError("; ".join(faults))


def write(folder: Path, answers: list[dict[str, Any]]) -> None:
    """The files of one contestant, and a line about it."""
    write_jsonl(folder / "answers.jsonl", answers)
    write_hand_in(folder, [Poem(row["input"], row["answer"]) for row in answers])
    trimmed = sum(bool(row["trimmed"]) for row in answers)
    lost = counted(row["unanswered"] for row in answers)
    finished = sum(not row["unanswered"] for row in answers)
    line = f"{finished} poems finished by {folder.name}, {trimmed} of the answers trimmed"
    if lost:
        line += f"; {', '.join(lost)}: dvc repro -s -f ask asks these again"
    if any(row["unanswered"] == "cut_off" for row in answers):
        line += "; more tokens for those cut off: max_completion_tokens among its options"
    print(line)


if __name__ == "__main__":
    run(main)

"""Have chat models on servers finish the test poems: ChatGPT, Kimi, any other.

    python -m stages.ask

Reads data/prepared/test.jsonl. Writes data/answers/contestants.json, who was asked, and a folder
each: answers.jsonl, rows of {"input", "answer", "raw", "trimmed", "finish_reason"}, and the
homework's hand-in as results.txt and results.json. What was answered once is in the user's cache
and is never asked again.
"""

from verse import params
from verse.chat.answers import finish
from verse.chat.client import key_for
from verse.chat.store import Store
from verse.errors import run
from verse.files import cache_dir, read_rows, replacing, write_json, write_jsonl, write_text


def main() -> None:
    p = params.read()
    poems = read_rows("data/prepared/test.jsonl", "instruction", "input")

    for one in p.contestants:  # before the first question
        key_for(one, one.name)
    with replacing("data/answers") as folder:
        asked = [{"name": one.name, "model": one.model} for one in p.contestants]
        write_json(folder / "contestants.json", asked)
        for one in p.contestants:
            answers = finish(one, poems, Store(cache_dir() / "answers.sqlite"), p.machine)
            write_jsonl(folder / one.name / "answers.jsonl", answers)
            poem = [(row["input"], row["answer"]) for row in answers]
            lines = [f"{n}. {couplet}{rest}\n" for n, (couplet, rest) in enumerate(poem, 1)]
            write_text(folder / one.name / "results.txt", "".join(lines))
            predicted = [{"input": couplet, "predict": rest} for couplet, rest in poem]
            write_json(folder / one.name / "results.json", predicted)
            trimmed = sum(bool(row["trimmed"]) for row in answers)
            print(f"{len(answers)} poems finished by {one.name}, {trimmed} of the answers trimmed")


if __name__ == "__main__":
    run(main)

"""Have a chat model mark the poems of all contestants, as the homework was graded.

    python -m stages.judge

Reads data/prepared/test.jsonl and all answers. Writes data/marks/marks.jsonl: for each contestant,
poem and question {"contestant", "poem", "question", "scores", "reasons"}, poems numbered from 1.
True poems are marked among them, and scrambled ones, which have tones and rhyme but no sense. An
answer without a line is not sent: its marks are 0. Without a judge the file is empty.
"""

from itertools import chain

from verse import params, paths
from verse.chat import llm_judge
from verse.chat.store import Store
from verse.errors import run
from verse.files import cache_dir, replacing, write_jsonl
from verse.poem import read_poems
from verse.poems.contestants import SCRAMBLED, answers_to, contestants


def main() -> None:
    p = params.read()
    poems = read_poems(paths.TEST)
    answers = {
        name: answers_to(poems, one.answers)
        for name, one in contestants(paths.ASKED).items()
        if one.answers
    }
    answers["reference"] = poems
    found = []
    if p.judge:
        from verse.chat import decoys  # reads the rhyme book

        count = p.judge.poems
        answers[SCRAMBLED] = decoys.scrambled(poems[:count])
        whole = {
            name: [poem.text if poem.rest_lines else "" for poem in ones[:count]]
            for name, ones in answers.items()
        }
        store = Store(cache_dir() / "answers.sqlite")
        sent = [poem for poem in chain.from_iterable(whole.values()) if poem]
        given = llm_judge.mark_poems(p.judge, sent, store, p.machine)
        given[""] = llm_judge.UNANSWERED
        found = [
            {
                "contestant": name,
                "poem": number,
                "question": question,
                "scores": [mark["score"] for mark in of_one],
                "reasons": [mark["reason"] for mark in of_one],
            }
            for name, ones in whole.items()
            for number, poem in enumerate(ones, 1)
            for question, of_one in given[poem].items()
        ]
        asked = len(sent) * len(llm_judge.QUESTIONS)
        print(f"{asked} times {llm_judge.TIMES} marks by {p.judge.model}")
    with replacing(paths.MARKS) as folder:
        write_jsonl(folder / "marks.jsonl", found)


if __name__ == "__main__":
    run(main)

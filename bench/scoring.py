"""Seconds and memory to score synthetic poems.

    python -m bench.scoring [generated poems] [training poems]

Without arguments both sizes the product is made for: 300 generated against 5,000 training
poems, and 50,000 against 300,000. Each size runs in a process of its own, so that the peak
memory is its own; imports are not timed.
"""

import random
import resource
import subprocess
import sys
import time

from verse.judging.floors import another_rest, constant, random_characters
from verse.judging.scoring import gain, judge, likenesses, summarise, tabulate
from verse.judging.usage import rivals
from verse.poems.lines import lines_in, split_lines
from verse.poems.prosody import BOOK

SIZES = ((300, 5_000), (50_000, 300_000))
RESAMPLES = 1000


def poem(draw: random.Random, characters: str) -> tuple[str, str]:
    """A couplet and its rest: random characters in the shapes of Tang poems."""
    length, lines = draw.choice((5, 7)), draw.choice((4, 8))
    text = "".join(
        "".join(draw.choices(characters, k=length)) + "，。"[place % 2] for place in range(lines)
    )
    return text[: 2 * (length + 1)], text[2 * (length + 1) :]


def score(generated: int, training: int) -> None:
    draw = random.Random(42)
    characters = "".join(sorted(set("".join(BOOK.values()))))
    train = [poem(draw, characters) for _ in range(training)]
    couplets, truths = zip(*(poem(draw, characters) for _ in range(generated)), strict=True)
    tuned = [poem(draw, characters)[1] for _ in range(generated)]
    base = [answer * 2 + " and then\n" for answer in tuned]

    poems = list(zip(couplets, truths, strict=True))
    start = time.perf_counter()
    training_lines = likenesses(lines_in(couplet + rest for couplet, rest in train))
    others = rivals([[line for line, _ in split_lines(couplet)] for couplet, _ in train])
    read = time.perf_counter()
    floors = [make(poems, train, 42) for make in (random_characters, constant, another_rest)]
    made = time.perf_counter()
    groups = [
        [judge(*texts, training_lines) for texts in zip(couplets, answers, truths, strict=True)]
        for answers in (base, tuned, *floors, truths)
    ]
    judged = time.perf_counter()
    tables = [tabulate(group, others) for group in groups]
    for group, table in zip(groups, tables, strict=True):
        summarise(group, table, truths, seed=42, resamples=RESAMPLES)
    gain(tables[1], tables[0], seed=42, resamples=RESAMPLES)
    done = time.perf_counter()

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{generated:,} poems in six groups against {training:,}: {done - start:.2f} s "
        f"(training lines {read - start:.2f}, floors {made - read:.2f}, "
        f"judging {judged - made:.2f}, "
        f"metrics {done - judged:.2f}), peak {peak:.2f} GiB"
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        score(int(sys.argv[1]), int(sys.argv[2]))
    else:
        for size in SIZES:
            subprocess.run([sys.executable, "-m", "bench.scoring", *map(str, size)], check=True)

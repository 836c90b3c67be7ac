"""What a judge's marks say of the poems, and of the judge."""

import json

import pandas as pd
import pytest

from verse.poems.contestants import SCRAMBLED
from verse.scoring.marks import measure, summarise, table


def row(contestant, poem, question, *scores):
    return {
        "contestant": contestant,
        "poem": poem,
        "question": question,
        "scores": list(scores),
        "reasons": [""] * len(scores),
    }


def marked(**marks):
    """Marks for both questions: for each contestant one a poem, the same three times."""
    return table(
        [
            row(name, poem, question, *[score] * 3)
            for name, scores in marks.items()
            for poem, score in enumerate(scores, 1)
            for question in ("prosody", "fluency")
        ]
    )


def ruled(**tones):
    rows = [
        {"contestant": name, "poem": poem, "tone": tone, "rhyme": int(tone > 0.5)}
        for name, ones in tones.items()
        for poem, tone in enumerate(ones, 1)
    ]
    return pd.DataFrame(rows)


def test_the_best_of_three_and_the_plain_mean():
    marks = table(
        [
            row("base", 1, "prosody", 1, 2, 6),
            row("base", 2, "prosody", 4, 4, 4),
            row("base", 1, "fluency", 0, 0, 9),
            row("base", 2, "fluency", None, 3, 3),
        ]
    )
    base = summarise(marks, seed=1, resamples=200)["base"]
    assert (base["judge_prosody"], base["judge_prosody_best"]) == (3.5, 5)
    assert (base["judge_fluency"], base["judge_fluency_best"]) == (3, 6)
    assert base["judge_prosody_ci95"] == 0.5 and base["judge_fluency_ci95"] == 0
    assert summarise(marks, seed=1, resamples=200)["base"] == base


def test_a_mark_that_could_not_be_read_counts_for_nothing():
    marks = table(
        [row("base", 1, "prosody", None, None, None), row("base", 2, "prosody", None, 2, 4)]
    )
    assert summarise(marks, seed=1, resamples=100)["base"]["judge_prosody"] == 3


def test_no_marks():
    assert summarise(table([]), seed=1, resamples=100) == {}
    assert measure(table([]), ruled(base=[0.5])) == {}


def test_a_judge_who_can_read():
    marks = marked(base=[2, 3, 4], tuned=[5, 6, 7], reference=[8, 9, 10], **{SCRAMBLED: [0, 1, 0]})
    poems = ruled(base=[0.2, 0.3, 0.4], tuned=[0.5, 0.6, 0.7], reference=[0.8, 0.9, 1.0])
    found = measure(marks, poems)
    assert found["agreement"]["tone"] == 1 and found["true_first"] == 1 and found["poems"] == 3
    assert found[SCRAMBLED] == {"prosody": pytest.approx(0.3333), "fluency": pytest.approx(0.3333)}
    assert found["reference"] == {"prosody": 9, "fluency": 9}


def test_a_judge_who_reads_upside_down():
    marks = marked(base=[8, 9], tuned=[6, 7], reference=[1, 2], **{SCRAMBLED: [10, 10]})
    poems = ruled(base=[0.2, 0.1], tuned=[0.4, 0.3], reference=[0.9, 0.8])
    found = measure(marks, poems)
    assert found["agreement"]["tone"] == -1 and found["true_first"] == 0


def test_a_judge_who_says_the_same_to_all():
    found = measure(marked(base=[7, 7], tuned=[7, 7], reference=[7, 7]), ruled(base=[0.1, 0.9]))
    assert found["agreement"] == {} and found["true_first"] == pytest.approx(1 / 3, abs=1e-4)
    json.dumps(found, allow_nan=False)


def test_marks_of_few_poems_or_none_that_can_be_read():
    for marks in (
        table([row("base", 1, "prosody", None)]),
        table([row("base", 1, "prosody", 3)]),
        table([row("base", 1, "prosody", 3), row("reference", 1, "fluency", 3)]),
        table([row(SCRAMBLED, 1, "fluency", 3)]),
    ):
        json.dumps(measure(marks, ruled(base=[0.5], reference=[1])), allow_nan=False)

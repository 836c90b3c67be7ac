"""What surprises the embedded model."""

import json
from math import isnan

import pytest
from grouped import ROOT

from verse import params
from verse.model import surprise
from verse.model.surprise import surprises
from verse.poem import Poem

COUPLET = ["白日依山盡", "黃河入海流"]


def test_a_poem_surprises_less_than_its_characters_in_disorder():
    poems = [
        (COUPLET, ["欲窮千里目", "更上一層樓"]),
        (COUPLET, ["千目窮欲里", "一樓層上更"]),
        (COUPLET, []),
        ([], ["𱍐", "x" * 30, ""]),
    ]
    found = surprises(poems, params.read().machine)
    assert 0 < found[0] < found[1] - 1 and isnan(found[2]) and found[3] > 0
    assert surprises(poems[:1], params.read().machine) == pytest.approx(found[:1], abs=1e-3)
    assert surprises([], params.read().machine) == []


def test_lines_beyond_the_readers_last_position_count_for_nothing():
    lines = ["欲窮千里目", "更上一層樓"] * 42  # of which 512 tokens hold 82
    short, long, one = surprises(
        [(COUPLET, lines[:80]), (COUPLET, lines * 3), (COUPLET, ["山" * 600])],
        params.read().machine,
    )
    assert long == pytest.approx(short, rel=0.02) and isnan(one)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_poems_number_hangs_on_no_other_poem(dtype, threads, monkeypatch, threads_of):
    monkeypatch.setattr(surprise, "READER", surprise.READER.model_copy(update={"dtype": dtype}))
    machine = params.read().machine.model_copy(update={"device": "cpu", "threads": threads})
    rows = json.loads((ROOT / "data/embedded/train.json").read_text("utf-8"))[:150]
    poems = [Poem(row["input"], row["output"]) for row in rows]
    verses = [(poem.couplet_lines, poem.rest_lines) for poem in poems]
    with threads_of(threads):
        together = surprises(verses, machine)
        parts = verses[:3], verses[3:20], verses[20:]
        assert [nats for part in parts for nats in surprises(part, machine)] == together

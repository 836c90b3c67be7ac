"""What surprises the embedded model."""

from math import isnan

import pytest

from verse import params
from verse.model.surprise import surprises

COUPLET = ["白日依山盡", "黃河入海流"]


def test_a_poem_surprises_less_than_its_characters_in_disorder():
    poems = [
        (COUPLET, ["欲窮千里目", "更上一層樓"]),
        (COUPLET, ["千目窮欲里", "一樓層上更"]),
        (COUPLET, []),
        ([], ["𱍐", "x" * 3000, ""]),
    ]
    found = surprises(poems, params.read().machine)
    assert 0 < found[0] < found[1] - 1 and isnan(found[2]) and found[3] > 0
    assert surprises(poems[:1], params.read().machine) == pytest.approx(found[:1], abs=1e-3)
    assert surprises([], params.read().machine) == []

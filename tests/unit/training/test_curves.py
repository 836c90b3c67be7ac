"""`verse.training.curves`: the loss curves grow, and end as an undisturbed training's."""

import pytest

from verse.training.curves import HEAD, Growing, rows
from verse.training.loop import Curves


def points(first, last):
    return [{"step": step, "loss": 4 - step / 8} for step in range(first, last)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "metrics/plots"


def texts(folder):
    return [(folder / f"{name}_loss.csv").read_text("utf-8") for name in ("train", "validation")]


def test_rows_are_there_as_soon_as_they_are_known(folder):
    curves, live = Curves([], []), Growing(folder)
    for step in range(5):
        curves.train += points(step, step + 1)
        curves.validation += points(step, step + 1) if step % 2 == 0 else []
        live(curves)
        assert texts(folder) == [HEAD + rows(curves.train), HEAD + rows(curves.validation)]


def test_a_training_that_goes_on_from_a_checkpoint_has_each_step_once(folder):
    """Killed after step 7, whose rows DVC removes with the output; the checkpoint has five."""
    Growing(folder)(Curves(points(0, 8), points(0, 1)))
    for file in folder.iterdir():
        file.unlink()
    live = Growing(folder)
    live(Curves(points(0, 5), points(0, 1)))
    live(Curves(points(0, 10), points(0, 2)))
    assert texts(folder) == [HEAD + rows(points(0, 10)), HEAD + rows(points(0, 2))]


def test_curves_of_an_earlier_run_stand_until_the_end(folder):
    Growing(folder)(Curves(points(0, 3), points(0, 1)))
    before = texts(folder)
    Growing(folder)(Curves(points(5, 6), points(5, 6)))
    assert texts(folder) == before


def test_no_training_fails_for_it(folder):
    folder.parent.mkdir(parents=True)
    folder.write_text("in the way")
    Growing(folder)(Curves(points(0, 3), points(0, 1)))
    assert folder.read_text() == "in the way"

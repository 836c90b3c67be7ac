"""The command line of `verse`."""

import sys

import pytest

from verse.cli import compare, main, show


@pytest.fixture
def called(monkeypatch):
    """Runs a command line; the options that its command was called with."""

    def run(*words):
        found = []
        for module in (compare, show):
            monkeypatch.setattr(module, "main", found.append)
        monkeypatch.setattr(sys, "argv", ["verse", *words])
        main.main()
        return found[0]

    return run


def test_what_show_does_not_know_goes_to_dvc(called):
    assert called("show").for_dvc == []
    assert called("show", "-A", "--sort-by", "seed").for_dvc == ["-A", "--sort-by", "seed"]


def test_no_other_command_takes_what_it_does_not_know(called, capsys):
    assert called("compare", "a", "b", "--to", "x").experiments == ["a", "b"]
    with pytest.raises(SystemExit):
        called("compare", "--bseline", "a")
    assert "unrecognized arguments: --bseline" in capsys.readouterr().err

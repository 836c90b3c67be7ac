"""The command line of `verse`."""

import subprocess
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


@pytest.mark.parametrize("flags", [("-OO",), ("-W", "error")], ids=" ".join)
def test_pythons_strictest_flags(flags, tmp_path):
    """-OO drops docstrings, of which the help is made and without which Transformers fails."""
    command = [sys.executable, *flags, "-m", "verse.cli.main"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Finish couplets on the terminal" in done.stdout
    couplet = "白日依山盡，黃河入海流。"
    poem = ["write", "--model", "models/mini", "--max-new-tokens", "2", couplet]
    done = subprocess.run([*command, *poem], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and couplet[:5] in done.stdout

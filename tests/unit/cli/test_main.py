"""The command line of `verse`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from verse.cli import compare, main, show

ROOT = Path(__file__).parents[3]


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


def test_show_says_once_what_dvc_does(tmp_path):
    """No repository: one line of DVC's, and its status."""
    command = [sys.executable, "-m", "verse.cli.main", "show"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 253 and not done.stdout
    assert done.stderr.count("not inside of a DVC repository") == 1, done.stderr


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

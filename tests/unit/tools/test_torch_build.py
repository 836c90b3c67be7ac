"""Which build of PyTorch the set-up takes: pip and the GPU are stood in for."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "tools/torch_build.py"
VERSION = "2.13.0"


@pytest.fixture
def setup(monkeypatch):
    """The script as a module, with a pip that has no settings and an index that answers."""
    spec = importlib.util.spec_from_file_location("torch_build", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.answers = {"config": "", "index": f"Available versions: {VERSION}+cpu, 2.12.0+cpu"}
    module.asked = []

    def pip(*arguments, seconds=None):
        module.asked.append(arguments)
        return module.answers.get(arguments[0], "")

    def install(*arguments):
        module.asked.append(("install", *arguments))
        return module.answers.get("install", True)

    monkeypatch.setattr(module, "pip", pip)
    monkeypatch.setattr(module, "install", install)
    monkeypatch.setattr(module, "nvidia_gpu", lambda: False)
    monkeypatch.setattr(module.sys, "platform", "linux")
    return module


def installed(module):
    return [arguments for arguments in module.asked if arguments[0] == "install"]


def test_the_version_is_the_pinned_one():
    assert f"\ntorch=={VERSION}\n" in (ROOT / "requirements/torch.txt").read_text("utf-8")


def test_without_a_gpu_torch_alone_comes_from_the_cpu_index(setup, capsys):
    setup.main()
    (arguments,) = installed(setup)
    assert arguments[-3:] == ("--index-url", setup.INDEX, f"torch=={VERSION}")
    assert "--no-deps" in arguments
    size, choice = capsys.readouterr().out.splitlines()
    assert "to download: " in size and "CPU build" in choice


def test_a_gpu_keeps_the_default_index(setup, monkeypatch, capsys):
    monkeypatch.setattr(setup, "nvidia_gpu", lambda: True)
    setup.main()
    assert not installed(setup)
    assert "NVIDIA GPU is here" in capsys.readouterr().out


@pytest.mark.parametrize(
    "told",
    [None, "", f"Available versions: {VERSION}", "<html>log in first</html>", f"{VERSION}0+cpu"],
)
def test_an_index_that_does_not_answer_or_lacks_the_version_is_let_be(setup, told, capsys):
    setup.answers["index"] = told
    setup.main()
    assert not installed(setup)
    assert "does not offer it" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings",
    [
        "global.index-url='https://mirror.example/simple'",
        ":env:.no-index='1'\n:env:.find-links='wheels'",
        "user.timeout='60'\ninstall.extra-index-url='https://mirror.example/simple'",
    ],
)
def test_indexes_of_ones_own_are_left_alone(setup, settings, capsys):
    setup.answers["config"] = settings
    setup.main()
    assert [arguments[0] for arguments in setup.asked] == ["config"]
    assert "pip is set up" in capsys.readouterr().out


@pytest.mark.parametrize("settings", ["global.proxy='http://index-url=x:1'", "global.cert='/x'"])
def test_other_settings_of_pip_are_no_index(setup, settings):
    setup.answers["config"] = settings
    setup.main()
    assert installed(setup)


def test_off_linux_nothing_is_asked(setup, monkeypatch):
    monkeypatch.setattr(setup.sys, "platform", "darwin")
    setup.main()
    assert not installed(setup)


def test_an_installation_that_breaks_off_is_said(setup, capsys):
    setup.answers["install"] = False
    setup.main()
    assert "failed" in capsys.readouterr().out


def test_a_command_that_hangs_fails_or_is_missing_is_none(setup):
    assert setup.run(sys.executable, "-c", "import time; time.sleep(60)", seconds=1) is None
    assert setup.run(sys.executable, "-c", "print(1); exit(1)") is None
    assert setup.run("/no/such/program") is None
    assert setup.run(sys.executable, "-c", "print(1)") == "1\n"

"""What tests of several folders share."""

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
from forked import PACKAGES, Server

# A machine that does other work too makes any deadline a matter of luck.
hypothesis.settings.register_profile("verse", deadline=None)
hypothesis.settings.load_profile("verse")

SLOW = (
    *("pipeline/test_pipeline.py", "pipeline/test_sweep.py"),
    *(
        "unit/chat",
        "unit/cli",
        "unit/generation",
        "unit/gpu",
        "unit/model",
        "unit/stages",
        "unit/training",
    ),
    "unit/scoring/test_cheats.py",
    *("unit/test_download.py", "unit/test_errors.py", "unit/test_forked.py", "unit/test_fuzz.py"),
    *("unit/tools/test_bench_speed.py", "unit/tools/test_scripts.py"),
)
"""What opens models, starts many interpreters or waits for servers: `make check` leaves it out."""


def is_slow(path):
    here = Path(__file__).parent
    return any(path.is_relative_to(here / name) for name in SLOW)


def pytest_ignore_collect(collection_path, config):
    """What is left out need not be imported: torch alone takes seconds."""
    if config.getoption("markexpr") == "not slow" and is_slow(collection_path):
        return True


def pytest_collection_modifyitems(items):
    for item in items:
        if is_slow(item.path):
            item.add_marker("slow")


@pytest.fixture
def of_the_run():
    """A function that reads a JSON file of metrics/ of the last run, if one is here."""

    def read(name):
        file = Path(__file__).parents[1] / "metrics" / name
        if not file.is_file():
            pytest.skip(f"{file.name} is of a run: dvc repro or dvc pull brings it")
        return json.loads(file.read_text("utf-8"))

    return read


@pytest.fixture(scope="session")
def forks():
    """`python` and an environment with which `python -m` forks: what forked.py says.

    No process that has seen a GPU or is a Mac's lives on in a fork: there Python starts as always.
    """
    if sys.platform != "linux" or Path("/dev/nvidiactl").exists():
        yield SimpleNamespace(python=sys.executable, env={})
        return
    server = Server(PACKAGES, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    folders = (str(server.python.parent), str(Path(sys.executable).parent), os.environ["PATH"])
    path = {"PATH": os.pathsep.join(folders)}
    yield SimpleNamespace(python=str(server.python), env=server.env | path)
    server.close()


@pytest.fixture
def forked_python(forks, monkeypatch):
    """What is started with `sys.executable` forks."""
    monkeypatch.setattr(sys, "executable", forks.python)
    for name, value in forks.env.items():
        monkeypatch.setenv(name, value)


FLAGS = (
    "headless=new",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-sync",
    "disable-background-networking",
    "disable-component-update",
    "hide-scrollbars",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium, driven by selenium, which logs what its console says."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no browser: install chromium and chromium-driver for the tests in one")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()

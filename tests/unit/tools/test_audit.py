"""What `make audit` says; pip-audit is stood in for."""

import importlib.util
import subprocess
from pathlib import Path

import pytest
from pip_audit._dependency_source import RequirementSource

ROOT = Path(__file__).parents[3]
LOCKS = sorted(f"requirements/{file.name}" for file in ROOT.glob("requirements/*.txt"))
TABLE = "Name Version ID\n---- ------- --\nx 1.0 PYSEC-1\n"
LOST = "ERROR:pip_audit._cli:x: Could not connect to PyPI's vulnerability feed\n"


@pytest.fixture
def audit(monkeypatch):
    """The script as a module, and what pip-audit answers in it."""
    spec = importlib.util.spec_from_file_location("audit", ROOT / "tools/audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(status, out, err):
        done = subprocess.CompletedProcess([], status, out, err)
        monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: done)
        return module.main()

    return run


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ((0, "", "No known vulnerabilities found\n"), 0, "no known vulnerabilities"),
        ((1, TABLE, "Found 1 known vulnerability in 1 package\n"), 1, "PYSEC-1"),
        ((1, "", LOST), 2, "requirements/pip.txt: nothing is known, since"),
        ((1, "", ""), 2, "it said nothing"),
    ],
)
def test_a_database_that_does_not_answer_is_no_good_news(audit, capsys, answer, status, said):
    assert audit(*answer) == status
    output = capsys.readouterr()
    assert said in output.out + output.err
    if status == 2:
        assert output.out == "" and output.err.count("\n") == 1


def test_all_locks_are_looked_up(audit, capsys):
    audit(0, "", "")
    assert [line.split(":")[0] for line in sorted(capsys.readouterr().out.splitlines())] == LOCKS


@pytest.mark.parametrize("lock", LOCKS)
def test_pip_audit_can_read_each_lock(lock):
    """Without a network: in a file with hashes every package must have one."""
    source = RequirementSource([ROOT / lock], no_deps=True, disable_pip=True)
    assert all(one.version for one in source.collect())

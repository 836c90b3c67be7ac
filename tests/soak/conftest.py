"""The long tests, run by `make soak`: each file is named on pytest's command line."""

import pytest
from forked import Stages, workplace


@pytest.fixture(scope="module")
def stages(request, tmp_path_factory):
    """The process that forks stages; what a module counted meanwhile is printed at its end."""
    server = Stages(tmp_path_factory.mktemp("stages"))
    yield server
    server.close()
    print("\n" + ", ".join(f"{count} {what}" for what, count in request.module.TOTALS.items()))


@pytest.fixture(scope="module")
def whole(stages, tmp_path_factory):
    """A folder in which all stages have run."""
    return workplace(tmp_path_factory.mktemp("whole") / "work", stages)

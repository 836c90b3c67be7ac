"""Check what an experiment asks for, before DVC removes anything.

    python -m stages.check

Checks all of params.yaml, that the environment has the keys of the chat models, that what
machine.report_to names is installed, and that the model is there: its folder, or its config on the
hub. Writes data/checked, which is always the same, so that no other stage runs because of it.
"""

from verse import params, paths, reporting
from verse.chat.client import check_secrets
from verse.errors import run
from verse.files import write_text
from verse.hub import check_reach


def main() -> None:
    p = params.read()
    for one in p.contestants:
        check_secrets(one, one.name)
    if p.judge:
        check_secrets(p.judge, "the judge")
    reporting.check(p.machine.report_to)
    check_reach(p.model, p.machine.cache_dir)
    write_text(paths.CHECKED, "params.yaml is fit to run\n")


if __name__ == "__main__":
    run(main)

"""Look the locked packages up in the advisory database; `make audit`.

Exit status 0: none has a known vulnerability. 1: some have, and a table says which. 2: the database
did not answer for all of them, so that nothing is known of a lock; a line says why.
"""

import subprocess
import sys

LOCKS = (
    "requirements/pip.txt",
    "requirements/runtime.txt",
    "requirements/torch.txt",
    "requirements/development.txt",
    "requirements/s3.txt",
    "requirements/servers.txt",
    "requirements/weights.txt",
    "requirements/tokenizers.txt",
    "requirements/gguf.txt",
)


def main() -> int:
    worst = 0
    for lock in LOCKS:  # one by one: of the packages of one call all have hashes or none
        worst = max(worst, audit(lock))
        if worst == 2:
            break  # one line is enough
    return worst


def audit(lock: str) -> int:
    """Say what is known of the packages of a lock; the exit status."""
    options = ["--strict", "--no-deps", "--disable-pip", "--progress-spinner", "off"]
    command = [sys.executable, "-m", "pip_audit", *options, "-r", lock]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        print(f"{lock}: no known vulnerabilities")
        return 0
    if done.stdout.strip():
        print(f"{lock}:\n{done.stdout.rstrip()}")
        return 1
    said = done.stderr.strip().splitlines() or ["it said nothing"]
    reason = said[-1].removeprefix("ERROR:pip_audit._cli:")[:300]
    print(
        f"{lock}: nothing is known, since the advisory database on pypi.org did not answer for all "
        f"packages ({reason}): try again where pypi.org itself is reached",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())

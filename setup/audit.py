"""Look the locked packages up in the advisory database; `make audit`.

Exit status 0: none has a known vulnerability. 1: some have, and a table says which. 2: the database
did not answer for all of them, so that nothing is known; a line says why.
"""

import subprocess
import sys

LOCKS = (
    "requirements.txt",
    "requirements-torch.txt",
    "requirements-dev.txt",
    "requirements-s3.txt",
)


def main() -> int:
    files = [word for lock in LOCKS for word in ("-r", lock)]
    options = ["--strict", "--no-deps", "--disable-pip", "--progress-spinner", "off"]
    command = [sys.executable, "-m", "pip_audit", *options, *files]
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stderr.strip().splitlines()
    if done.returncode == 0:
        print(f"{', '.join(LOCKS)}: no known vulnerabilities")
        return 0
    if done.stdout.strip():
        print(done.stdout.rstrip())
        return 1
    reason = (said or ["it said nothing"])[-1].removeprefix("ERROR:pip_audit._cli:")
    print(
        f"audit: nothing is known, since the advisory database on pypi.org did not answer for all "
        f"packages ({reason[:300]}): try again where pypi.org itself is reached",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())

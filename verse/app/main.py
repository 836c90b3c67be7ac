"""The command `verse`: what people run beside the pipeline.

verse merge    write models/merged, the adapter merged into the full-precision model
"""

import argparse

from verse import errors
from verse.app import merge

COMMANDS = {"merge": merge}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="verse", description="Teach a language model to finish Tang poems."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        commands.add_parser(name, help=summary, description=module.__doc__)
    command = parser.parse_args().command
    errors.run(COMMANDS[command].main, f"verse {command}")


if __name__ == "__main__":
    main()

"""The command `verse`: what people run beside the pipeline.

verse run        an experiment by a recipe, such as breeze
verse write      finish a couplet on the terminal
verse page       a page to write poems on, and to see what decoding does
verse show       experiments in a table that fits a terminal
verse compare    experiments with intervals, paired differences and a picture
verse plots      the plots of dvc.yaml as SVG and PNG
verse merge      write models/merged, the adapter merged into the full-precision model
verse export     write models/gguf, for llama.cpp and Ollama
"""

import argparse
from importlib.metadata import version

from verse import errors
from verse.cli import compare, export, merge, page, plots, run, show, write

MODULES = (run, write, page, show, compare, plots, merge, export)
COMMANDS = {module.__name__.rpartition(".")[2]: module for module in MODULES}
"""Each has `main`, which takes the options that its `add_options` declares."""


def main() -> None:
    errors.keep_docstrings()  # of which the help is made
    parser = argparse.ArgumentParser(
        prog="verse", description="Teach a language model to finish Tang poems."
    )
    parser.add_argument("--version", action="version", version=f"verse {version('verse')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        module.add_options(command)
    options, others = parser.parse_known_args()
    if "for_dvc" in options:
        options.for_dvc = others
    elif others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    errors.run(lambda: COMMANDS[options.command].main(options), f"verse {options.command}")


if __name__ == "__main__":
    main()

"""Leave a link to the model's folder, so that other weights there are noticed.

    python -m stages.locate

Writes data/model: a link to the folder that model.name names, through which DVC sees its files, or
the name of a model on the hub, whose files model.revision pins.
"""

from verse import params, paths
from verse.errors import run
from verse.files import check_tree, note_origin
from verse.hub import find_folder


def main() -> None:
    p = params.read()
    if folder := find_folder(p.model.name):
        check_tree(folder)
    note_origin(folder or {"model": p.model.name}, paths.MODEL, "model.name")


if __name__ == "__main__":
    run(main)

"""A page to write poems on, and to see what temperature, top-k and top-p do to them.

Serves it on this machine alone, unless --host says otherwise, from Python's own HTTP server: it
fetches nothing from elsewhere. The base model and the adapter write side by side; click a
character to see the distribution that it was drawn from. An answer that is read as it is written
cannot be taken back for a better one, so the page draws one candidate.
"""

import argparse
import os

from verse import params
from verse.errors import UserError

PORT = 8710


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="WHAT", help="a folder, an experiment or a commit; else models/adapter"
    )
    parser.add_argument("--base", action="store_true", help="the base model alone")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="0 takes any free (%(default)s)")


def main(options: argparse.Namespace) -> None:
    p = params.read()
    if not 0 <= options.port < 2**16:
        raise UserError(f"--port {options.port}: a port is a number from 0 to 65535")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # on a busy machine, threads take turns
    os.environ.setdefault("TQDM_DISABLE", "1")  # the page shows how far a poem is

    from verse.cli.page.server import Server  # heavy

    try:
        server = Server((options.host, options.port))
    except (OSError, TypeError, ValueError) as error:  # the latter two of what is no host's name
        where, said = f"{options.host}, port {options.port}", getattr(error, "strerror", None)
        raise UserError(
            f"{where}: {(said or str(error)).lower()}: give another --host or --port"
        ) from None
    with server:
        server.open(p, options.model, base_alone=options.base)
        print(f"http://{server.address}/ is ready; Ctrl-C ends it", flush=True)
        server.serve_forever()

"""The page over HTTP: three files, three questions, and answers that stream line by line.

Python's own server is enough for it: a thread a connection, few of them, each short. Only the
page itself may ask: a request must name this server as its host, which keeps out other sites that
resolve to this machine, and questions are JSON, which other sites may not send unasked.
"""

import json
import socket
import sys
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from verse.cli.page.service import Couplet, Explaining, PageService, Refusal, Writing, refusal
from verse.params import Params

HERE = Path(__file__).parent
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Connection": "close",
}
CONNECTIONS = 64  # at once; who comes after them is hung up on
PATIENCE = 20  # seconds that a visitor may take to send or to read
LONGEST_QUESTION = 16 * 1024  # bytes


class Server(ThreadingHTTPServer):
    service: PageService

    def __init__(self, address: tuple[str, int]):
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, RequestHandler)
        self.places = threading.BoundedSemaphore(CONNECTIONS)

    def open(self, p: Params, model: str | None, *, base_alone: bool) -> None:
        self.service = PageService(p, model, base_alone=base_alone)

    @property
    def address(self) -> str:
        host, port = map(str, self.server_address[:2])
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def names(self) -> set[str] | None:
        """The hosts that a request may name, None for any: then the user has opened it to all."""
        host, port = map(str, self.server_address[:2])
        if host not in ("127.0.0.1", "::1"):
            return None
        return {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A visitor who leaves, or who is too slow, is no error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class RequestHandler(BaseHTTPRequestHandler):
    server: Server
    timeout = PATIENCE

    def do_GET(self) -> None:
        if self.path in FILES:
            name, kind = FILES[self.path]
            self.send(200, f"{kind}; charset=utf-8", [(HERE / name).read_bytes()])
        elif self.path == "/state":
            self.answer(lambda: self.server.service.state())
        elif self.path == "/random":
            self.answer(lambda: self.server.service.random())
        else:
            self.answer(nothing_there)

    def do_POST(self) -> None:
        service = self.server.service
        if self.path == "/couplet":
            self.answer(lambda: service.look_up(self.question(Couplet)))
        elif self.path == "/explain":
            self.answer(lambda: service.explain(self.question(Explaining)))
        elif self.path == "/write":
            self.stream()
        else:
            self.answer(nothing_there)

    def question(self, kind: type[BaseModel]) -> Any:
        """What is asked, checked. Raises Refusal."""
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json" or not length.isdecimal():
            raise Refusal(415, "請以 JSON 提問。", "Ask in JSON.")
        if int(length) > LONGEST_QUESTION:
            raise Refusal(413, "太長了。", "That is too long.")
        try:
            return kind.model_validate_json(self.rfile.read(int(length)))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = ".".join(map(str, fault["loc"])) or "the question"
            raise Refusal(
                400, f"{where} 超出範圍或寫錯了。", f"{where}: {fault['msg'].lower()}."
            ) from None

    def answer(self, ask: Any) -> None:
        try:
            self.check_host()
            status, value = 200, ask()
        except Exception as error:
            told = refusal(error)
            status, value = told.status, {"error": told.words}
        self.send(status, "application/json", [line(value)])

    def stream(self) -> None:
        gone = threading.Event()
        try:
            self.check_host()
            events = self.server.service.write(self.question(Writing), gone)
        except Exception as error:
            told = refusal(error)
            self.send(told.status, "application/json", [line({"error": told.words})])
            return
        try:
            self.send(200, "application/x-ndjson", map(line, events))
        finally:
            gone.set()

    def check_host(self) -> None:
        names = self.server.names
        if names is not None and self.headers.get("Host", "") not in names:
            raise Refusal(403, "請用本機的網址。", f"Visit http://{self.server.address}/ instead.")

    def send(self, status: int, kind: str, parts: Iterable[bytes]) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind}.items():
            self.send_header(name, value)
        self.end_headers()
        for part in parts:
            self.wfile.write(part)

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal stays quiet."""


def line(value: Any) -> bytes:
    """A value as a line of JSON; half surrogate pairs, which are no text, become "?"."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"


def nothing_there() -> None:
    raise Refusal(404, "沒有這一頁。", "There is nothing at this address.")

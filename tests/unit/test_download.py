"""`verse.download` against a server on this machine that does everything wrong."""

import errno
import hashlib
import http.server
import io
import subprocess
import sys
import threading
import time
from unittest.mock import Mock

import pytest
import requests

from verse import download as module
from verse.download import download
from verse.errors import UserError

BODY = b'[{"input": "a", "output": "b"}]' * 20_000
SHA256 = hashlib.sha256(BODY).hexdigest()
HALF = len(BODY) // 2


class Server(http.server.ThreadingHTTPServer):
    """Answers GET /name with the function of that name below; `seen` holds (path, Range)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen = []
        self.stop = threading.Event()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def handle_error(self, request, client_address):
        pass  # clients that hang up are what these tests are about


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        name = self.path.strip("/").split("?")[0]
        self.server.seen.append((name, self.headers.get("Range")))
        self.visits = sum(seen == name for seen, _ in self.server.seen)
        ANSWERS[name](self)

    def send(self, body=BODY, status=200, length=None, **headers):
        self.send_response(status)
        if length != "none":
            self.send_header("Content-Length", str(length or len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def ranged(self, **headers):
        """The body from where the client wants it."""
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if not start:
            return self.send(**headers)
        content = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
        self.send(BODY[start:], 206, Content_Range=content, **headers)

    def broken(self, **headers):
        """Half the body, then the connection ends."""
        self.send(BODY[:HALF], length=len(BODY), **headers)


def stall(self):
    self.send(BODY[:HALF], length=len(BODY))
    self.server.stop.wait(20)


def drip(self):
    self.send(b"", length=len(BODY))
    while not self.server.stop.wait(0.05):
        self.wfile.write(b" ")
        self.wfile.flush()


def drip_of_headers(self):
    self.wfile.write(b"HTTP/1.0 200 OK\r\n")
    while not self.server.stop.wait(0.05):
        self.wfile.write(b"X: y\r\n")


def drip_of_a_chunk_size(self):
    self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")
    while not self.server.stop.wait(0.05):
        self.wfile.write(b"x")


def redirect_with_an_endless_body(self):
    self.send(b"", 302, length="none", Location="/good")
    while not self.server.stop.is_set():
        self.wfile.write(BODY)


def chunked(self, whole=True):
    self.protocol_version = "HTTP/1.1"
    self.send_response(200)
    self.send_header("Transfer-Encoding", "chunked")
    self.send_header("Connection", "close")
    self.end_headers()
    self.wfile.write(b"%x\r\n%s\r\n" % (len(BODY), BODY) + (b"0\r\n\r\n" if whole else b""))
    self.close_connection = True


def changed(self, minds_if_range):
    """Another version from the second visit on: a piece of it must not be appended."""
    if self.visits == 1:
        return self.send(b"x" * HALF, length=len(BODY), ETag='"1"')
    if minds_if_range and self.headers.get("If-Range") == '"1"':
        return self.send(ETag='"2"')
    return self.ranged(**{} if minds_if_range else {"ETag": '"2"'})


def redirect(self, target):
    self.send(b"", 302, Location=target)


ANSWERS = {
    "good": Handler.send,
    "missing": lambda self: self.send(b"no", 404),
    "busy": lambda self: self.send(b"", 503) if self.visits < 3 else self.send(),
    "down": lambda self: self.send(b"", 500),
    "stall": stall,
    "drip": drip,
    "drip-headers": drip_of_headers,
    "drip-chunk-size": drip_of_a_chunk_size,
    "mute": lambda self: self.server.stop.wait(20),
    "chunked": chunked,
    "cut-chunked": lambda self: chunked(self, whole=False),
    "cut": Handler.broken,
    # The first visit breaks; the next go on from there, if this server knows how.
    "ranges": lambda self: self.broken(ETag='"1"') if self.visits == 1 else self.ranged(),
    "whole": lambda self: self.broken(ETag='"1"') if self.visits == 1 else self.send(),
    "no-tag": lambda self: self.broken() if self.visits == 1 else self.ranged(),
    "elsewhere": lambda self: (
        self.broken(ETag='"1"')
        if self.visits == 1
        else self.send(BODY[7:], 206, Content_Range="bytes 7-9/10")
        if self.headers.get("Range")
        else self.send()
    ),
    "changed": lambda self: changed(self, minds_if_range=True),
    "changed-unminding": lambda self: changed(self, minds_if_range=False),
    "refuses": lambda self: self.send(b"", 416) if self.headers.get("Range") else self.send(),
    "html": lambda self: self.send(b"\n<!DOCTYPE html><title>sign in</title>"),
    "to-good": lambda self: redirect(self, "/good"),
    "to-good-at-length": redirect_with_an_endless_body,
    "to-half-an-address": lambda self: redirect(self, "http://["),
    "to-no-text": lambda self: redirect(self, "http://127.0.0.1/\xff"),
    "to-no-port": lambda self: redirect(self, "http://127.0.0.1:x/"),
    "to-html": lambda self: redirect(self, "/html?token=secret"),
    "to-file": lambda self: redirect(self, "file:///etc/passwd"),
    "round": lambda self: redirect(self, "/round"),
    "huge": lambda self: self.send(b"", length=10**12),
    "endless": lambda self: self.send(BODY, length="none"),
    "length-beyond-numbers": lambda self: self.send(length="9" * 5000),
    "length-below-zero": lambda self: self.send(length=-5),
    "length-of-words": lambda self: self.send(length="many"),
    "two-lengths": lambda self: self.send(length="12, 13"),
    "gzip": lambda self: self.send(b"\x1f\x8b", Content_Encoding="gzip"),
    "..%2F..%2Fescape": lambda self: self.send(Content_Disposition="filename=../../escape"),
}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def get(server, tmp_path):
    """Download a name from the server, impatiently."""

    def get(name, **options):
        options = {"timeout": 5.0, "pauses": (0.01, 0.01, 0.01)} | options
        return download(server.url(name), tmp_path / "cache", **options)

    return get


def fails(get, name, *words, **options):
    with pytest.raises(UserError) as caught:
        get(name, **options)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line
    return line


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize(
    "name",
    [
        *("good", "chunked", "to-good", "to-good-at-length", "busy", "..%2F..%2Fescape"),
        *("length-beyond-numbers", "length-below-zero", "length-of-words"),
    ],
)
@pytest.mark.parametrize("sha256", [None, SHA256, SHA256.upper()])
def test_a_good_body_is_kept_under_its_hash(get, tmp_path, name, sha256):
    path = get(name, sha256=sha256)
    assert path == tmp_path / "cache" / SHA256
    assert path.read_bytes() == BODY
    assert visible(tmp_path) == ["cache"]
    assert visible(tmp_path / "cache") == [SHA256]


def test_a_verified_file_is_never_fetched_twice(get, server):
    first = get("good", sha256=SHA256)
    server.stop.set()
    assert get("good", sha256=SHA256) == first
    assert get("missing", sha256=SHA256) == first  # whatever the mirror
    assert len(server.seen) == 1


def test_a_damaged_cache_is_mended(get):
    get("good", sha256=SHA256).write_bytes(b"damaged")
    assert get("good", sha256=SHA256).read_bytes() == BODY


def test_a_file_without_a_hash_is_fetched_anew(get, server):
    get("good")
    get("good")
    assert len(server.seen) == 2


def test_another_hash_names_both(get, tmp_path):
    other = "0" * 64
    fails(get, "good", f"expected sha256 {other}", f"got {SHA256}", sha256=other)
    assert visible(tmp_path / "cache") == []
    assert get("good").read_bytes() == BODY


def test_a_hash_cannot_be_a_path(get):
    fails(get, "good", "64 hexadecimal digits", sha256="../../../escape")


@pytest.mark.parametrize(
    ("name", "ranges"),
    [
        ("ranges", [None, f"bytes={HALF}-"]),
        ("whole", [None, f"bytes={HALF}-"]),
        ("no-tag", [None, None]),  # nothing says that it is still the same file
        ("changed", [None, f"bytes={HALF}-"]),
        ("changed-unminding", [None, f"bytes={HALF}-", None]),
        ("elsewhere", [None, f"bytes={HALF}-", None]),
    ],
)
def test_a_broken_transfer_goes_on(get, server, name, ranges):
    assert get(name).read_bytes() == BODY
    assert [wanted for _, wanted in server.seen] == ranges


def test_a_known_hash_is_enough_to_go_on(get, server):
    assert get("no-tag", sha256=SHA256).read_bytes() == BODY
    assert server.seen[-1] == ("no-tag", f"bytes={HALF}-")


@pytest.mark.parametrize("name", ["no-tag", "refuses"])
@pytest.mark.parametrize("left", [BODY[:HALF], b"x" * HALF, BODY + b"too long"])
def test_what_an_earlier_run_left_is_used_if_it_fits(get, tmp_path, server, name, left):
    server.seen.append(("no-tag", "the first visit is over"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f".{SHA256}.partial").write_bytes(left)
    assert get(name, sha256=SHA256).read_bytes() == BODY
    assert server.seen[1][1] == f"bytes={len(left)}-"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cut", ("connection", "4 attempts")),
        ("cut-chunked", ("connection", "4 attempts")),
        ("down", ("500", "4 attempts")),
        ("stall", ("stalled", "0.3 s")),
        ("mute", ("stalled", "0.3 s")),
        ("drip", ("stalled", "0.3 s")),
        ("drip-headers", ("stalled", "0.3 s")),
        ("drip-chunk-size", ("stalled", "0.3 s")),
    ],
)
def test_trouble_that_does_not_pass_ends_soon(get, tmp_path, server, name, words):
    began = time.monotonic()
    fails(get, name, server.url(name), *words, timeout=0.3)
    assert time.monotonic() - began < 4
    while len(server.seen) < 4 and time.monotonic() - began < 10:
        time.sleep(0.01)  # on a busy machine the server hears of an attempt when it is over
    assert len(server.seen) == 4
    assert visible(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", ("404", "check the address")),
        ("html", ("web page",)),
        ("to-html", ("web page", "redirected to http://127.0.0.1", "/html")),
        ("to-file", ("redirected to file:///etc/passwd", "http or https")),
        ("to-half-an-address", ("malformed",)),
        ("to-no-text", ("malformed",)),
        ("to-no-port", ("malformed",)),
        ("two-lengths", ("malformed",)),
        ("huge", ("larger than",)),
        ("gzip", ("compressed",)),
    ],
)
def test_trouble_that_stays_is_not_tried_again(get, server, name, words):
    line = fails(get, name, *words)
    assert "secret" not in line
    assert sum(seen == name for seen, _ in server.seen) == 1


def test_a_circle_of_redirects_ends(get, server):
    fails(get, "round", "redirected more than")
    assert len(server.seen) == 1 + module.REDIRECTS


def test_a_body_that_hides_its_length_is_limited_too(get, tmp_path):
    fails(get, "endless", "larger than 1,000 bytes", limit=1_000)
    assert not list((tmp_path / "cache").glob(".*.partial"))
    assert get("endless", limit=len(BODY)).read_bytes() == BODY


@pytest.mark.parametrize("target", ["http://example.org/", "HTTP://example.org/", "h\tttp://a/"])
def test_https_is_never_left_for_http(monkeypatch, tmp_path, target):
    """No certificate here, so the first answer is made up; the second must not be asked for."""
    asked = []

    def answer(adapter, request, **options):
        asked.append(request.url)
        response = requests.Response()
        response.status_code, response.url, response.request = 302, request.url, request
        response.headers["Location"], response.raw = target, io.BytesIO()
        return response

    monkeypatch.setattr("requests.adapters.HTTPAdapter.send", answer)
    with pytest.raises(UserError, match="not https"):
        download("https://example.org/poems.json", tmp_path, pauses=())
    assert asked == ["https://example.org/poems.json"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://example.org/poems.json", "only http and https"),
        ("file:///etc/passwd", "only http and https"),
        ("https://", "names no host"),
        ("https://[", "not a URL"),
        ("https://me:secret@example.org/a", "user name or password"),
        ("http://no-such-host.invalid/a?key=secret", "no host no-such-host.invalid"),
        ("http://127.0.0.1:9/a?key=secret", "takes no connection"),
    ],
)
def test_a_url_that_leads_nowhere(tmp_path, monkeypatch, url, words):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(UserError, match=words) as caught:
        download(url, tmp_path, pauses=(), timeout=5)
    assert "secret" not in str(caught.value)


def test_no_secure_connection(server, tmp_path):
    with pytest.raises(UserError, match="no secure connection to"):
        download(server.url("good").replace("http:", "https:"), tmp_path, pauses=())


def test_a_proxy_that_is_not_there(server, tmp_path, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the proxy lets nothing through"):
        download("http://example.org/poems.json", tmp_path, pauses=())


def test_a_bar_on_a_terminal(get, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    get("good")
    assert "127.0.0.1" in capsys.readouterr().err


def test_secrets_of_a_url_are_not_kept(get, tmp_path):
    path = get("good?key=secret")
    assert not any("secret" in found.name for found in tmp_path.rglob("*"))
    assert path.read_bytes() == BODY


def test_two_at_once_share_one_download(get, server):
    paths = []
    threads = [
        threading.Thread(target=lambda: paths.append(get("good", sha256=SHA256))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() for path in paths] == [BODY] * 4
    assert len(server.seen) == 1


def test_silence_in_a_log(server, tmp_path):
    """In a process of its own: a library may hold on to the stderr it was imported with."""
    program = "import sys; from verse.download import download; download(*sys.argv[1:])"
    command = [sys.executable, "-c", program, server.url("good?key=secret"), tmp_path]
    done = subprocess.run(command, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_full_disk_is_told_as_it_is(get, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(module.Transfer, "receive", Mock(side_effect=full))
    with pytest.raises(OSError, match="No space left") as caught:
        get("good")
    assert caught.value is full

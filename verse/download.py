"""Files from the web: verified, resumed, kept, and never more than asked for.

`download` is the one function. A file whose sha256 is known is fetched once and read from
the cache ever after, so a pinned source works offline. pooch keeps the cache and checks the
hashes; requests and urllib3 speak to the network.
"""

import hashlib
import re
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO
from urllib.parse import urljoin, urlsplit

import pooch
import requests
import urllib3
from tqdm import tqdm

from verse.errors import UserError
from verse.files import LARGEST, digest, locked

MIB = 2**20
REDIRECTS = 10
CONNECT = 10.0  # seconds to wait for a connection
SLOWEST = 1024  # bytes that must arrive in each `timeout` seconds; a drip is a stall too

# What an error of the network means, the first that fits; {} is the host.
MEANINGS: dict[type[Exception], str] = {
    requests.TooManyRedirects: f"redirected more than {REDIRECTS} times",
    ValueError: "the address, a redirect or a header is malformed",
    urllib3.exceptions.NameResolutionError: "no host {} found",
    urllib3.exceptions.NewConnectionError: "{} takes no connection",
    requests.ConnectTimeout: "{} takes no connection",
    requests.exceptions.SSLError: "no secure connection to {}: check its certificate",
    requests.exceptions.ProxyError: "the proxy lets nothing through: check http_proxy, https_proxy",
    Exception: "the connection dropped",
}
NETWORK = (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError)
VAIN = (requests.TooManyRedirects, ValueError)  # errors that another attempt does not fix

pooch.get_logger().setLevel("ERROR")  # at its own level it writes down whole URLs


class Interrupted(Exception):
    """A transfer broke in a way that another attempt may fix."""


def download(
    url: str,
    cache: str | Path,
    *,
    sha256: str | None = None,
    limit: int = LARGEST,
    timeout: float = 30.0,
    whole: float = 1800.0,
    pauses: Sequence[float] = (1.0, 2.0, 4.0),
) -> Path:
    """Fetch a data file and return where it lies: `cache`/<its sha256>.

    Only http and https are spoken, and https is never left for http. With `sha256`, a file
    already in the cache is taken from there without a request. A stall of `timeout` seconds,
    a dropped connection and a busy server are tried again after each of `pauses` (seconds),
    going on where the transfer broke if the server can. A body over `limit` bytes or a web
    page is refused. All attempts together end after `whole` seconds. The cache holds whole files
    only; a lock keeps two processes apart.

    Raises UserError: no network, no such host or page, another hash, stalled, too large.
    """
    shown = public(url)
    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256 := sha256.lower()):
        raise UserError(f"{shown}: the sha256 to expect is not 64 hexadecimal digits")
    cache = Path(cache).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    # Names come from hashes alone: nothing in a URL or a header can choose a path.
    key = sha256 or hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
    name = sha256 or f".{key}.whole"
    partial = cache / f".{key}.partial"
    transfer = Transfer(url, partial, bool(sha256), limit, timeout, whole, pauses)
    with locked(cache / f".{key}.lock", f"{shown}: another download is under way: waiting for it"):
        if not sha256:  # what an earlier run left may belong to another version of the file
            transfer.partial.unlink(missing_ok=True)
            (cache / name).unlink(missing_ok=True)
        # A piece from an earlier run may be bad: then all anew, once.
        again = int(transfer.partial.exists())
        files = {"registry": {name: sha256}, "urls": {name: url}}
        try:
            pooch.create(cache, "", **files, retry_if_failed=again).fetch(name, downloader=transfer)
        except ValueError:
            what = f"expected sha256 {sha256}, got {transfer.found}"
            raise transfer.fault(what, "use another mirror or correct the hash") from None
        return (cache / name).replace(cache / (sha256 or transfer.found))


@dataclass
class Transfer:
    """A downloader for pooch: one body on its way into the file `partial`."""

    url: str
    partial: Path
    pinned: bool  # the hash is known, so a wrong continuation will be noticed
    limit: int  # bytes
    timeout: float  # seconds
    whole: float  # seconds
    pauses: Sequence[float]  # seconds
    tag: str = ""  # the strong ETag of what `partial` holds
    end: float = 0.0  # of all attempts, by the monotonic clock
    received: int = 0  # bytes, in all attempts
    final: str = ""  # the URL after redirects
    found: str = ""  # the sha256 of the whole body

    def __call__(self, url: str, output_file: str, keeper: pooch.Pooch) -> None:
        """Put the whole body at `output_file`. Raises UserError if it cannot be had."""
        self.end = self.end or time.monotonic() + self.whole
        for pause in (*self.pauses, None):
            try:
                self.attempt()
                break
            except Interrupted as trouble:
                if pause is None:
                    raise self.fault(
                        f"{trouble} ({len(self.pauses) + 1} attempts)",
                        "check the address and the network, and run the same command again",
                    ) from None
                time.sleep(pause)
        with self.partial.open("rb") as stream:
            start = stream.read(1024)
        if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
            self.partial.unlink()
            raise self.fault("a web page, not a data file", "give the file's own address")
        self.found = digest(self.partial)
        self.partial.replace(output_file)

    def attempt(self) -> None:
        """Fetch what is missing. Raises Interrupted, or UserError if trying again is vain."""
        self.final = self.url
        done: Future[None] = Future()

        def work() -> None:
            try:
                self.receive(file, bar)
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error)

        host = urlsplit(self.url).hostname
        with (
            self.partial.open("ab") as file,
            # disable=None: a bar on a terminal, silence in a log
            tqdm(desc=host, unit="B", unit_scale=True, leave=False, disable=None) as bar,
        ):
            # A socket's timeout does not bound a drip of headers, so a thread does the waiting.
            # One that is given up finds `file` closed when it wakes; a daemon holds up no exit.
            Thread(target=work, daemon=True).start()
            before = self.received
            while not wait([done], min(self.timeout, self.end - time.monotonic())).done:
                if time.monotonic() >= self.end:
                    what = f"not done in {self.whole:g} s"
                    raise self.fault(what, "download it yourself and give its path")
                if self.received - before < SLOWEST:
                    raise Interrupted(f"stalled: {SLOWEST} bytes take over {self.timeout:g} s")
                before = self.received
        try:
            done.result()
        except (*NETWORK, *VAIN) as error:
            cause = getattr(error.args[0] if error.args else None, "reason", error)
            fits = (kind for kind in MEANINGS if isinstance(error, kind) or isinstance(cause, kind))
            words = MEANINGS[next(fits)].format(urlsplit(self.final).hostname)
            if isinstance(error, VAIN):
                raise self.fault(words, "give the file's own address") from None
            raise Interrupted(words) from None

    def receive(self, file: BinaryIO, bar: "tqdm[Any]") -> None:
        """Append what is missing to `file`, or write the whole body anew."""
        offset = file.tell() if self.pinned or self.tag else 0
        # The plain bytes are wanted: lengths and ranges of a compressed body would not fit.
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers |= {"Range": f"bytes={offset}-"} | ({"If-Range": self.tag} if self.tag else {})
        hooks, timeout = {"response": self.follow}, (CONNECT, 4 * self.timeout)
        with requests.Session() as session:
            session.max_redirects = REDIRECTS
            answer = session.get(
                self.url, headers=headers, stream=True, hooks=hooks, timeout=timeout
            )
            status, words = answer.status_code, f"the server answers {answer.status_code}"
            tag = answer.headers.get("ETag", "")
            if status in (408, 425, 429) or status >= 500:
                raise Interrupted(words)
            if offset and status in (206, 416):
                starts = answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
                if not starts or (self.tag and tag not in ("", self.tag)):
                    file.truncate(0)  # another piece, or one of another version
                    raise Interrupted("the server does not go on where the transfer broke")
            elif status != 200:
                raise self.fault(words, "check the address")
            else:
                file.truncate(offset := file.seek(0))
                self.tag = tag if tag.startswith('"') else ""
            if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise self.fault("a compressed body, which was not asked for", "use another mirror")
            # urllib3 reads Content-Length: None if there is none, or none that makes sense.
            size = offset + (answer.raw.length_remaining or 0)
            bar.total, bar.initial, bar.n = size, offset, offset
            # read1 hands over what has arrived; read would sit and wait for a full block.
            # Both raise if the body ends before its announced length.
            while size <= self.limit and (block := answer.raw.read1(MIB)):
                file.write(block)
                bar.update(len(block))
                self.received += len(block)
                size = max(size, file.tell())
            if not size:
                raise Interrupted("an empty body")
            if size > self.limit:
                self.partial.unlink()
                raise self.fault(
                    f"larger than {self.limit:,} bytes", "download it yourself and give its path"
                )

    def follow(self, response: requests.Response, **_: Any) -> None:
        """See where a redirect leads before requests goes there."""
        if not response.is_redirect:
            return
        response.close()  # requests would read all of its body into memory
        self.final = urljoin(response.url, response.headers["location"])
        allowed = ("https",) if response.url.lower().startswith("https:") else ("http", "https")
        if urlsplit(self.final).scheme not in allowed:
            raise self.fault(f"not {' or '.join(allowed)}", "give the file's own address")

    def fault(self, what: str, remedy: str) -> UserError:
        """The one line about this transfer: where, what, where redirects led, what to do."""
        led = "" if self.final == self.url else f", redirected to {bare(self.final)}"
        return UserError(f"{public(self.url)}: {what}{led}: {remedy}")


def public(url: str) -> str:
    """The URL as it may be shown and written down: no password, no query, no fragment.

    Raises UserError if it is no http or https URL, or if it holds a user name or password.
    """
    try:
        parts = urlsplit(url)
        scheme, host = parts.scheme, parts.hostname
    except ValueError:
        raise UserError(f"{bare(url)}: not a URL: give the file's own address") from None
    if "@" in parts.netloc:
        raise UserError(
            f"{scheme}://…@{host}: holds a user name or password, which would be written down: "
            "take it out of the URL (a ~/.netrc file is read)"
        )
    if scheme not in ("http", "https"):
        raise UserError(
            f"{bare(url)}: only http and https URLs are fetched, not {scheme}: "
            "download it yourself and give its path"
        )
    if not host:
        raise UserError(f"{bare(url)}: names no host: give the file's own address")
    return parts._replace(query="", fragment="").geturl()


def bare(url: str) -> str:
    """A URL of any scheme without what may be secret in it."""
    return re.sub(r"//[^/@]*@", "//…@", url.split("?")[0].split("#")[0])

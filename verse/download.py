"""Files from the web: verified, resumed, kept, and never more than asked for.

`download` is the one function. A file whose sha256 is known is fetched once and read from
the cache ever after, so a pinned source works offline.
"""

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
import urllib3
from filelock import FileLock
from tqdm import tqdm

from verse.errors import UserError
from verse.files import digest, sync

MIB = 2**20
GIB = 2**30
REDIRECTS = 10
CONNECT = 10.0  # seconds to wait for a connection
SLOWEST = 1024  # bytes that must arrive in each `timeout` seconds; a drip is a stall too


class Interrupted(Exception):
    """A transfer broke in a way that another attempt may mend."""


def download(
    url: str,
    cache: str | Path,
    *,
    sha256: str | None = None,
    limit: int = GIB,
    timeout: float = 30.0,
    pauses: Sequence[float] = (1.0, 2.0, 4.0),
) -> Path:
    """Fetch a data file and return where it lies: `cache`/<its sha256>.

    Only http and https are spoken, and https is never left for http. With `sha256`, a file
    already in the cache is taken from there without a request. A stall of `timeout` seconds,
    a dropped connection and a busy server are tried again after each of `pauses` (seconds),
    going on where the transfer broke if the server can. A body over `limit` bytes or a web
    page is refused. The cache holds whole files only; a lock keeps two processes apart.

    Raises UserError: no network, no such host or page, another hash, stalled, too large.
    """
    shown = public(url)
    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256 := sha256.lower()):
        raise UserError(f"{shown}: the sha256 to expect is not 64 hexadecimal digits")
    cache = Path(cache).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    # Names come from hashes alone: nothing in a URL or a header can choose a path.
    key = sha256 or hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
    with FileLock(cache / f".{key}.lock"):
        if sha256 and (cache / sha256).is_file() and digest(cache / sha256) == sha256:
            return cache / sha256
        transfer = Transfer(url, cache / f".{key}.partial", bool(sha256), limit, timeout)
        if not sha256:  # what an earlier run left may belong to another version of the file
            transfer.partial.unlink(missing_ok=True)
        resumed = transfer.partial.exists()
        insist(transfer, pauses)
        if sha256 and resumed and digest(transfer.partial) != sha256:
            transfer.partial.unlink()  # the piece from the earlier run was bad: all anew
            insist(transfer, pauses)
        return keep(transfer, sha256, cache)


def insist(transfer: "Transfer", pauses: Sequence[float]) -> None:
    """Run the transfer, again after each pause, until it is whole."""
    for pause in (*pauses, None):
        try:
            return transfer.run()
        except Interrupted as trouble:
            if pause is None:
                raise UserError(
                    f"{public(transfer.url)}: {trouble} ({len(pauses) + 1} attempts): "
                    "check the network and run the same command again"
                ) from None
            time.sleep(pause)


def keep(transfer: "Transfer", sha256: str | None, cache: Path) -> Path:
    """Check a whole transfer and move it to its place in the cache."""
    partial, shown = transfer.partial, public(transfer.url)
    final = bare(transfer.final)
    came = "" if final == bare(transfer.url) else f", redirected to {final}"
    with partial.open("rb") as stream:
        start = stream.read(1024)
    found = digest(partial)
    if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        partial.unlink()
        raise UserError(f"{shown}: a web page, not a data file{came}: give the file's own address")
    if sha256 and found != sha256:
        partial.unlink()
        raise UserError(
            f"{shown}: expected sha256 {sha256}, got {found}{came}: "
            "the file has changed or is damaged; use another mirror or correct the hash"
        )
    sync(partial)
    return partial.replace(cache / found)


@dataclass
class Transfer:
    """One body on its way into the file `partial`; `run` may be called until it is whole."""

    url: str
    partial: Path
    pinned: bool  # the hash is known, so a wrong continuation will be noticed
    limit: int  # bytes
    timeout: float  # seconds
    tag: str = ""  # the strong ETag of what `partial` holds
    final: str = ""  # the URL after redirects

    def run(self) -> None:
        """Fetch what is missing. Raises Interrupted, or UserError if trying again is vain."""
        offset = self.partial.stat().st_size if self.partial.exists() else 0
        if not (self.pinned or self.tag):
            offset = 0
        with requests.Session() as session:
            try:
                response = self.open(session, offset)
                if offset and not self.goes_on(response, offset):
                    response.close()
                    offset = 0
                    response = self.open(session, 0)
                with response:
                    self.receive(response, offset if response.status_code == 206 else 0)
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
                raise explained(error, self) from None

    def open(self, session: requests.Session, offset: int) -> requests.Response:
        """The response to a GET from byte `offset` on, redirects followed one by one."""
        # The plain bytes are wanted: lengths and ranges of a compressed body would not fit.
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if self.tag:
                headers["If-Range"] = self.tag
        self.final = self.url
        for _ in range(REDIRECTS):
            response = session.get(
                self.final,
                headers=headers,
                stream=True,
                allow_redirects=False,
                timeout=(min(CONNECT, self.timeout), self.timeout),
            )
            if not response.is_redirect:
                return response
            response.close()
            target = urljoin(self.final, response.headers["location"])
            secure = self.final.lower().startswith("https:")
            if not target.lower().startswith("https:" if secure else ("https:", "http:")):
                raise UserError(
                    f"{public(self.url)}: redirected to {bare(target)}, which is not "
                    f"{'https' if secure else 'http or https'}: give the file's own address"
                )
            self.final = target
        raise UserError(
            f"{public(self.url)}: redirected more than {REDIRECTS} times: "
            "give the file's own address"
        )

    def goes_on(self, response: requests.Response, offset: int) -> bool:
        """Whether an answer to a request from `offset` on can be used: not another piece, nor
        a piece of another version. (A whole body, or an error, can be.)"""
        if response.status_code == 206:
            same = not self.tag or response.headers.get("ETag", self.tag) == self.tag
            return same and response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
        return response.status_code != 416

    def receive(self, response: requests.Response, offset: int) -> None:
        """Write the body to `partial` from byte `offset` on."""
        shown, status = public(self.url), response.status_code
        if status in (408, 425, 429) or status >= 500:
            raise Interrupted(f"the server answers {status} {response.reason}")
        if status not in (200, 206):
            raise UserError(
                f"{shown}: the server answers {status} {response.reason}: check the address"
            )
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UserError(
                f"{shown}: the server sends a compressed body, which was not asked for: "
                "use another mirror or download the file and give its path"
            )
        tag = response.headers.get("ETag", "")
        self.tag = tag if tag.startswith('"') else ""
        length = response.headers.get("Content-Length", "")
        total = offset + int(length) if length.isdecimal() else None
        self.refuse_beyond_limit(total or 0)
        with (
            self.partial.open("ab" if offset else "wb") as file,
            tqdm(
                total=total,
                initial=offset,
                desc=urlsplit(self.url).hostname,
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                leave=False,
                disable=None,  # a bar on a terminal, silence in a log
            ) as bar,
        ):
            since, before = time.monotonic(), offset
            # read1 hands over what has arrived; read would sit and wait for a full block.
            # Both raise if the body ends before its announced length.
            while block := response.raw.read1(MIB):
                file.write(block)
                bar.update(len(block))
                self.refuse_beyond_limit(file.tell())
                if (now := time.monotonic()) - since >= self.timeout:
                    if file.tell() - before < SLOWEST:
                        raise Interrupted(f"stalled: {SLOWEST} bytes take over {self.timeout:g} s")
                    since, before = now, file.tell()

    def refuse_beyond_limit(self, size: int) -> None:
        if size > self.limit:
            self.partial.unlink(missing_ok=True)
            raise UserError(
                f"{public(self.url)}: larger than {self.limit:,} bytes: "
                "download the file yourself and give its path"
            )


def explained(error: Exception, transfer: Transfer) -> Exception:
    """What an error of the network means: Interrupted if another attempt may help."""
    if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
        if isinstance(error, (ConnectionError, TimeoutError)):
            return Interrupted("the connection dropped")
        return error  # of the disk: full, or no permission
    shown, host = public(transfer.url), urlsplit(transfer.final).hostname
    cause = getattr(error.args[0] if error.args else None, "reason", None) or error
    if isinstance(cause, urllib3.exceptions.NameResolutionError):
        return UserError(f"{shown}: no host {host} found: check the address and the network")
    if isinstance(error, requests.exceptions.SSLError):
        return UserError(f"{shown}: no secure connection to {host}: check its certificate")
    if isinstance(error, requests.exceptions.ProxyError):
        return UserError(
            f"{shown}: the proxy lets nothing through: check http_proxy and https_proxy"
        )
    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
        return Interrupted(f"stalled: nothing came for {transfer.timeout:g} s")
    if isinstance(error, requests.ConnectionError) and isinstance(
        cause, urllib3.exceptions.NewConnectionError
    ):
        return Interrupted(f"{host} takes no connection")
    if isinstance(error, (requests.ConnectionError, urllib3.exceptions.ProtocolError)):
        return Interrupted("the connection dropped")
    return UserError(f"{shown}: not an address that can be fetched ({type(error).__name__})")


def public(url: str) -> str:
    """The URL as it may be shown and written down: no password, no query, no fragment.

    Raises UserError if it is no http or https URL, or if it holds a user name or password.
    """
    try:
        parts = urlsplit(url)
        scheme, host, secret = parts.scheme, parts.hostname, "@" in parts.netloc
    except ValueError:
        raise UserError(f"{url}: not a URL") from None
    if secret:
        raise UserError(
            f"{scheme}://…@{host}: holds a user name or password, which would be written down: "
            "take it out of the URL (a ~/.netrc file is read)"
        )
    if scheme not in ("http", "https"):
        raise UserError(f"{bare(url)}: only http and https URLs are fetched, not {scheme}")
    if not host:
        raise UserError(f"{bare(url)}: names no host")
    return urlunsplit((scheme, parts.netloc, parts.path, "", ""))


def bare(url: str) -> str:
    """A URL of any scheme without what may be secret in it."""
    return re.sub(r"//[^/@]*@", "//…@", url.split("?")[0].split("#")[0])

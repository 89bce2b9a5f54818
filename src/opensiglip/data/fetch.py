"""`opensiglip data fetch`: a list of links and texts as tars of images. What can't be had is counted, never fatal.

img2dataset does this, too, and its tars are read here; it is no extra, since its 24 packages take pandas back to 2, and
since it bounds neither the size of what it fetches nor where links lead.
"""

import http.client
import ipaddress
import socket
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from opensiglip.data.example import BrokenExample
from opensiglip.data.sources.columns import LANGUAGES, TEXTS, usual
from opensiglip.data.sources.csv import read_csv
from opensiglip.data.sources.images import decode_image_bytes
from opensiglip.data.writing.record import Picture, Record, extension_of, jpeg, resized
from opensiglip.data.writing.shards import Done, Rows, write_shards
from opensiglip.errors import UserError

LINKS = ("url", "image_url", "link", "urls", "img_url", "src")
AGENT = "Mozilla/5.0 (compatible; opensiglip)"
CHUNK = 1 << 16  # bytes read at a time
AGAIN = {408, 425, 429, 500, 502, 503, 504}  # answers after which a second try may do better (RFC 9110, RFC 6585)


@dataclass(frozen=True)
class Limits:
    """What one link may take."""

    seconds: float = 10.0  # for all of one try
    megabytes: float = 20.0
    retries: int = 2
    private: bool = False  # may links lead to this machine and its own network?


@dataclass(frozen=True)
class Links:
    """The rows of each job: up to `rows` links of a table, fetched by `threads` at a time, in their order."""

    urls: list[str]
    texts: list[dict[str, str]]
    rows: int
    threads: int
    picture: Picture
    limits: Limits

    def __call__(self, number: int) -> Rows:
        rows = range(number * self.rows, min((number + 1) * self.rows, len(self.urls)))
        with ThreadPoolExecutor(self.threads) as pool:
            for made in pool.map(self._tried, rows):
                yield "train", made

    def _tried(self, row: int) -> Callable[[], Record]:
        """A call that gives the record, or raises why there is none."""
        try:
            record = self._record(row)
        except BrokenExample as reason:
            return partial(refuse, str(reason))
        return lambda: record

    def _record(self, row: int) -> Record:
        data, url = fetch(self.urls[row], self.limits), self.urls[row]
        pixels = decode_image_bytes(data)
        height, width = pixels.shape[1:]
        extension = extension_of(data)
        if self.picture.side is not None or extension is None:
            pixels = resized(pixels, self.picture.side)
            data, extension = jpeg(pixels, self.picture.quality), "jpg"
        facts = {"url": url, "width": pixels.shape[2], "height": pixels.shape[1]}
        facts |= {"original_width": width, "original_height": height}
        return Record(data, extension, self.texts[row] | facts, Counter())


def refuse(why: str) -> Record:
    raise BrokenExample(why)


def fetch_list(
    table: Path, out: Path, *, rows_per_shard: int, threads: int, picture: Picture, limits: Limits, text: str | None
) -> Done:
    """Fetch every link of a CSV or TSV into tars below `out`; gone on with where it was ended. Raises UserError."""
    for flag, value in (("rows-per-shard", rows_per_shard), ("threads", threads), ("seconds", limits.seconds)):
        if not value > 0:
            raise UserError(f"--{flag} {value} is out of range; give a number of more than 0.")
    if not limits.megabytes > 0 or limits.retries < 0:
        raise UserError("--megabytes must be more than 0, and --retries 0 or more.")
    urls, texts = read_links(table, text)
    links = Links(urls, texts, rows_per_shard, threads, picture, limits)
    counts = [len(urls[at : at + rows_per_shard]) for at in range(0, len(urls), rows_per_shard)]
    plan: dict[str, Any] = {"links": table.name, "rows": len(urls), "rows_per_shard": rows_per_shard}
    return write_shards(out, plan | {"picture": vars(picture)}, "tar", links, counts, 0)


def read_links(table: Path, text: str | None) -> tuple[list[str], list[dict[str, str]]]:
    """Links, and the caption and language of each. Raises UserError where there is no column of them."""
    cells, _ = read_csv(table, linked=True)
    names = cells.column_names
    url, caption, language = usual(names, LINKS), text or usual(names, TEXTS), usual(names, LANGUAGES)
    if url is None:
        raise UserError(f"{table} has no column of links ({', '.join(LINKS)}); there are {', '.join(names)}.")
    if caption is not None and caption not in names:
        raise UserError(f"--text {caption}: {table} has no such column; there are {', '.join(names)}.")
    columns = {"caption": caption, "lang": language}
    found = {name: cells[column].to_pylist() for name, column in columns.items() if column is not None}
    urls = [cell.decode(errors="replace").strip() for cell in cells[url].to_pylist()]
    texts = [
        {name: of[row].decode(errors="replace") for name, of in found.items() if of[row]} for row in range(len(urls))
    ]
    return urls, texts


def fetch(url: str, limits: Limits) -> bytes:
    """What a link gives. Raises BrokenExample with the reason: it is dead, too slow, too large, or leads inside."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        partial(Plain, limits.private),
        partial(Secure, limits.private),
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    if not url.startswith(("http://", "https://")):
        raise BrokenExample("link is neither http nor https")
    for attempt in range(limits.retries + 1):
        try:
            return _read(opener, url, limits)
        except urllib.error.HTTPError as error:
            error.close()
            why, again = f"link answers {error.code}", error.code in AGAIN
        except BrokenExample:
            raise
        except TimeoutError:
            why, again = f"link takes over {limits.seconds:g} s", True
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, Inside):
                raise BrokenExample("link leads into this machine's own network") from None
            slow = isinstance(reason, TimeoutError)
            why, again = f"link takes over {limits.seconds:g} s" if slow else "link does not answer", True
        if not again or attempt == limits.retries:
            raise BrokenExample(why)
        time.sleep(min(8.0, 0.25 * 2**attempt))
    raise BrokenExample("link does not answer")


def _read(opener: urllib.request.OpenerDirector, url: str, limits: Limits) -> bytes:
    ends, most = time.monotonic() + limits.seconds, int(limits.megabytes * 1e6)
    request = urllib.request.Request(url, headers={"User-Agent": AGENT, "Accept": "image/*"})
    parts, size = list[bytes](), 0
    with opener.open(request, timeout=limits.seconds) as answer:
        while part := answer.read1(CHUNK):
            size += len(part)
            if size > most:
                raise BrokenExample(f"image file over {limits.megabytes:g} MB")
            if time.monotonic() > ends:
                raise TimeoutError
            parts.append(part)
    return b"".join(parts)


class Inside(OSError):
    """A link leads to an address of this machine or its own network, which strangers' lists have no business with."""


def connect(address: tuple[str, int], timeout: float, source: Any = None, *, private: bool) -> socket.socket:
    """A connection; the address is judged once it stands, so no name server can change it meanwhile. Raises Inside."""
    made = socket.create_connection(address, timeout, source)
    if not private and not ipaddress.ip_address(made.getpeername()[0].partition("%")[0]).is_global:
        made.close()
        raise Inside
    return made


class Plain(urllib.request.HTTPHandler):
    """http, to public addresses unless `private`."""

    def __init__(self, private: bool) -> None:
        super().__init__()
        self.private = private

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(partial(made_by, http.client.HTTPConnection, self.private), request)


class Secure(urllib.request.HTTPSHandler):
    """https, the same."""

    def __init__(self, private: bool) -> None:
        super().__init__()
        self.private = private

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(partial(made_by, http.client.HTTPSConnection, self.private), request)


def made_by(kind: type[http.client.HTTPConnection], private: bool, host: str, **options: Any) -> Any:
    """A connection of http.client that connects by `connect`."""
    made: Any = kind(host, **options)
    made._create_connection = partial(connect, private=private)
    return made

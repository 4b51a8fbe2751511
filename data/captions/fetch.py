"""One image from the web: its bytes and its size, or the reason why there is none.

Reasons are short and countable: "HTTP 404", "timeout", "not an image", ... Details go into a text of their own.
"""

from __future__ import annotations

import io
import os
import socket
import ssl
import string
import time
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException, HTTPResponse, IncompleteRead
from threading import BoundedSemaphore, Event
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit, urlunsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from PIL import Image

SMALLEST, LARGEST = 10, 10_000  # sides in pixels (original 7.3)
USER_AGENT = "Mozilla/5.0 (compatible; vl-bert-captions/1.0)"
CHUNK = 1 << 16
LONGEST_WAIT = 60.0  # seconds that a server may ask for with Retry-After
BUSY = (408, 425, 429)  # HTTP codes below 500 that are temporary
DEAD = (501, 505)  # HTTP codes from 500 that are final

TIMEOUT, CONNECTION, NO_HOST, CUT_OFF = "timeout", "connection failed", "no such host", "cut off"
TLS, BAD_ADDRESS, TOO_LARGE, STOPPED = "TLS failed", "bad address", "too many bytes", "stopped"
NOT_AN_IMAGE, BAD_SIZE = "not an image", f"a side outside {SMALLEST}..{LARGEST} px"

# Decoded images are large. More at a time than processors would not be faster.
_decoding = BoundedSemaphore(os.cpu_count() or 1)


@dataclass(frozen=True)
class Limits:
    """timeout: seconds for connecting and for each read. deadline: seconds for a whole image."""

    timeout: float = 10.0
    deadline: float = 60.0
    max_bytes: int = 50 << 20
    user_agent: str = USER_AGENT


class LostError(Exception):
    """There is no image. reason: one of a few texts. http: the code of the server, None without an answer.

    wait: seconds of the server's Retry-After header, None without one.
    """

    def __init__(self, reason: str, detail: str = "", http: int | None = None, wait: float | None = None) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.http, self.wait = reason, detail, http, wait


def is_temporary(reason: str) -> bool:
    """Whether a later attempt may succeed."""
    if reason.startswith("HTTP "):
        code = int(reason.removeprefix("HTTP "))
        return code in BUSY or (code >= 500 and code not in DEAD)
    return reason in (TIMEOUT, CONNECTION, NO_HOST, CUT_OFF)


def is_worth_retrying(reason: str) -> bool:
    """Whether to try again within the same run. An unknown host stays unknown for some seconds."""
    return is_temporary(reason) and reason != NO_HOST


def image_size(data: bytes) -> tuple[int, int]:
    """Returns width and height of an image. Raises LostError unless it decodes to RGB and has sides of 10 to 10,000
    pixels (original 7.3).

    As in `common.files.images.load_image`, the EXIF orientation is not applied.
    """
    try:
        with _decoding:
            image = Image.open(io.BytesIO(data))
            size = image.size
            if _fits(size):
                image.convert("RGB")
    except Exception as error:  # the bytes come from anywhere: every error of Pillow means the same
        raise LostError(NOT_AN_IMAGE, f"{type(error).__name__}: {error}") from error
    if not _fits(size):
        raise LostError(BAD_SIZE, f"{size[0]} x {size[1]}")
    return size


def _fits(size: tuple[int, int]) -> bool:
    return min(size) >= SMALLEST and max(size) <= LARGEST


def download(url: str, limits: Limits, stop: Event | None = None) -> tuple[bytes, int]:
    """Returns the body at an http(s) address, and the HTTP code. Raises LostError, with STOPPED once `stop` is set."""
    request = Request(ascii_url(url), headers={"User-Agent": limits.user_agent, "Accept": "image/*,*/*;q=0.5"})
    end = time.monotonic() + limits.deadline
    try:
        with _opener().open(request, timeout=limits.timeout) as response:
            return _read(response, limits, end, stop), response.status
    except HTTPError as error:
        with error:
            raise LostError(f"HTTP {error.code}", str(error.reason), error.code, _wait(error)) from error
    except URLError as error:
        raise _lost(error.reason) from error
    except (OSError, HTTPException, ValueError) as error:
        raise _lost(error) from error


def ascii_url(url: str) -> str:
    """Returns the address in the ASCII form of a request. Raises LostError unless it is http or https with a host."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError("expected http:// or https:// and a host")
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except ValueError as error:  # UnicodeError is one
        raise LostError(BAD_ADDRESS, f"{url[:200]!r}: {error}") from error
    place = f"[{name}]" if ":" in name else name
    safe = string.punctuation  # keeps escapes as they are
    path, query = (quote(part, safe=safe) for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, f"{place}:{port}" if port else place, path or "/", query, ""))


@lru_cache(maxsize=1)
def _opener() -> OpenerDirector:
    """An opener without urllib's handlers of file, ftp and data addresses, which a redirection may name."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler(),
        UnknownHandler(),
        HTTPHandler(),
        HTTPSHandler(context=ssl.create_default_context()),  # made once: reading the certificates is slow
        HTTPDefaultErrorHandler(),
        HTTPRedirectHandler(),
        HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _read(response: HTTPResponse, limits: Limits, end: float, stop: Event | None) -> bytes:
    header = response.headers.get("Content-Length", "")
    expected = int(header) if header.isdigit() else None
    parts, size = [], 0
    # read1 returns the bytes that have come. read() would wait for hours on a server that sends a byte a second.
    while True:
        if (expected or 0) > limits.max_bytes or size > limits.max_bytes:
            raise LostError(TOO_LARGE, f"{expected or size} bytes, the limit is {limits.max_bytes}", response.status)
        part = response.read1(CHUNK)
        if not part:
            break
        parts.append(part)
        size += len(part)
        if stop is not None and stop.is_set():
            raise LostError(STOPPED)
        if time.monotonic() > end:
            raise LostError(TIMEOUT, f"{size} bytes in {limits.deadline:g} seconds", response.status)
    if expected is not None and size != expected:
        raise LostError(CUT_OFF, f"{size} of {expected} bytes", response.status)
    return b"".join(parts)


def _lost(error: object) -> LostError:
    """Maps an exception of the network to a LostError."""
    detail = f"{type(error).__name__}: {error}"[:200]
    if isinstance(error, TimeoutError):
        return LostError(TIMEOUT, detail)
    if isinstance(error, socket.gaierror):
        return LostError(CONNECTION if error.errno == socket.EAI_AGAIN else NO_HOST, detail)
    if isinstance(error, ssl.SSLError):
        return LostError(TLS, detail)
    if isinstance(error, IncompleteRead):
        return LostError(CUT_OFF, detail)
    if isinstance(error, (OSError, HTTPException)) and not isinstance(error, ValueError):
        return LostError(CONNECTION, detail)
    return LostError(BAD_ADDRESS, detail)


def _wait(error: HTTPError) -> float | None:
    text = (error.headers.get("Retry-After") or "").strip() if error.headers else ""
    return min(float(text), LONGEST_WAIT) if text.isdigit() else None

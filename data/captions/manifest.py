"""The manifest of a download: one JSON line for each image that was tried."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from sys import intern
from types import TracebackType
from typing import NamedTuple

logger = logging.getLogger(__name__)

OK = "ok"


@dataclass(frozen=True)
class Entry:
    """The outcome of one image. id: its line in the table, from 0. status: "ok" or the reason of the loss.

    http: code of the server, None without an answer. sha256, bytes, width, height: of a good image. tries: the number
    of requests, 0 for a file that was on disk.
    """

    id: int
    url: str
    status: str
    http: int | None = None
    sha256: str | None = None
    bytes: int | None = None
    width: int | None = None
    height: int | None = None
    tries: int = 0
    detail: str = ""


class Known(NamedTuple):
    """The part of an entry that stays in memory, for millions of images. url: checksum of the address."""

    status: str
    bytes: int
    url: int


class Manifest:
    """The file `<split>_download.jsonl`. The last entry of an image counts. Only one process may have it open.

    A line that is torn by a kill or a power cut is dropped. Raises BlockingIOError if another process has it open.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab+")  # noqa: SIM115 (closed in close)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise BlockingIOError(f"{self.path}: another download is writing to it") from None
        _end_torn_line(self._file.fileno())
        self.known = read_manifest(self.path)

    def add(self, entry: Entry) -> None:
        """Adds an entry. It is flushed at once, so that a killed process loses none."""
        self._file.write(json.dumps(asdict(entry), ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self.known[entry.id] = _known(asdict(entry))

    def counts(self) -> Counter[str]:
        """Returns the number of images of each status."""
        return Counter(known.status for known in self.known.values())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_manifest(path: str | Path) -> dict[int, Known]:
    """Returns the entries by the line of the image, in file order. Damaged lines are skipped with one warning."""
    known, damaged = {}, []
    for number, record in _records(Path(path)):
        if record is None:
            damaged.append(number)
        else:
            known[record[0]] = record[1]
    if damaged:
        logger.warning("%s: %d damaged lines skipped, the first is line %d", path, len(damaged), damaged[0])
    return known


def address_sum(url: str) -> int:
    return zlib.crc32(url.encode())


def _records(path: Path) -> Iterator[tuple[int, tuple[int, Known] | None]]:
    """Yields (line number, (id, entry)), and (line number, None) for a damaged line."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                yield number, (int(record["id"]), _known(record))
            except (ValueError, KeyError, TypeError):
                yield number, None


def _known(record: dict[str, object]) -> Known:
    return Known(intern(str(record["status"])), int(str(record["bytes"] or 0)), address_sum(str(record["url"])))


def _end_torn_line(file: int) -> None:
    """Ends a last line without a line end, which would run into the next one."""
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        os.write(file, b"\n")

"""Text files by line number, in constant memory."""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.files.atomic import atomic_write, remove_leftovers
from common.files.text import BOM, START, kind_of

log = logging.getLogger(__name__)

CHUNK = 1 << 24  # bytes read at once while indexing
SMALL = 1 << 24  # bytes; each process indexes a smaller file by itself, which takes milliseconds
HEADER = 4  # numbers before the offsets of an index: format, size and modification time of the file, lines
FORMAT = 1
_SPACE = np.zeros(256, dtype=bool)
_SPACE[list(b" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f")] = True


class LineFile:
    """The lines of a UTF-8 text file that are not blank, stripped of white space. Can be pickled.

    A large file has an index, `<file>.lines`, with the positions of its lines. It is written at the first use and when
    the file has changed; in the folder `cache` if the folder of the file is read-only. File and index are mapped into
    memory, so that all processes of a machine share what they read.
    Raises FileNotFoundError, and DataError for a file without a line.
    """

    def __init__(self, path: Path | str, cache: Path | str = "cache") -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"text file {self.path}: no such file")
        with open(self.path, "rb") as file:
            if kind := kind_of(file.read(START)):
                raise DataError(f"{self.path}: this is {kind}; expected UTF-8 text")
        self._index = self._find_index(Path(cache))
        if not len(self):
            raise DataError(f"{self.path}: has no line of text")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, number: int) -> str:
        """Returns line `number`, counted from 0 without blank lines. Raises IndexError, and DataError unless UTF-8."""
        if not 0 <= number < len(self):
            raise IndexError(f"{self.path}: line {number} of {len(self)}")
        start = int(self._offsets[number])
        ends = [end for mark in (b"\n", b"\r") if (end := self._bytes.find(mark, start, self._limit(number))) >= 0]
        data = self._bytes[start : min(ends, default=self._limit(number))]
        try:
            return data.removeprefix(BOM if start == 0 else b"").decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: line {number + 1} that is not blank, at byte {start}: {error}") from error

    def _limit(self, number: int) -> int:
        """A byte position at or after the end of line `number`."""
        return int(self._offsets[number + 1]) if number + 1 < len(self) else len(self._bytes)

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_index": self._index}  # each process maps the files itself

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        if self._index is None:
            return np.concatenate([np.zeros(0, np.int64), *_line_starts(self.path)])
        return np.memmap(self._index, np.int64, "r")[HEADER:]

    @cached_property
    def _bytes(self) -> mmap.mmap:
        with open(self.path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _find_index(self, cache: Path) -> Path | None:
        """Returns the index, None for a small file. If it is missing, one process writes it while the others wait."""
        state = self.path.stat()
        if state.st_size < SMALL:
            return None
        wanted = (FORMAT, state.st_size, state.st_mtime_ns)
        beside = self.path.with_name(self.path.name + ".lines")
        elsewhere = cache / (str(self.path.resolve()).strip("/").replace("/", "%") + ".lines")
        for place in (beside, elsewhere):
            if _fits(place, wanted):
                return place
        place = beside if os.access(beside.parent, os.W_OK) else elsewhere
        place.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "rb") as lock:
            with suppress(OSError):  # a file system may not support locks: then several processes write the same
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not _fits(place, wanted):
                remove_leftovers(place.parent, place.name)
                log.info("indexing the lines of %s (%.1f GB) in %s", self.path, state.st_size / 1e9, place)
                _write_index(self.path, place, wanted)
        return place


def _fits(index: Path, wanted: tuple[int, ...]) -> bool:
    """Returns whether there is a complete index of the file in this state (format, size, time)."""
    if not index.is_file():
        return False
    header = np.fromfile(index, np.int64, HEADER)
    return len(header) == HEADER and (*header[:3],) == wanted and index.stat().st_size == (HEADER + header[3]) * 8


def _write_index(path: Path, index: Path, state: tuple[int, ...]) -> None:
    count = 0
    with atomic_write(index) as file:
        file.write(np.zeros(HEADER, np.int64).tobytes())
        for starts in _line_starts(path):
            file.write(starts.tobytes())
            count += len(starts)
        file.seek(0)
        file.write(np.array([*state, count], np.int64).tobytes())


def _line_starts(path: Path) -> Iterator[NDArray[np.int64]]:
    """Yields the offsets of the lines that are not blank, for one chunk of the file after another."""
    with open(path, "rb") as file:
        position, rest = 0, b""
        while True:
            chunk = file.read(CHUNK)
            data = rest + chunk
            if not data:
                return
            cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1 if chunk else len(data)
            whole, rest = data[:cut], data[cut:]
            yield _starts(whole) + position
            position += cut


def _starts(data: bytes) -> NDArray[np.int64]:
    """Returns the offsets of the lines of `data` that hold more than white space."""
    if not data:
        return np.zeros(0, np.int64)
    values = np.frombuffer(data, np.uint8)
    breaks = np.flatnonzero((values == ord("\n")) | (values == ord("\r")))
    starts = np.concatenate([[0], breaks + 1])
    starts = starts[starts < len(values)]
    ends = np.append(starts[1:], len(values))
    visible = ~_SPACE[values]
    # A line with visible ASCII text is not blank. Lines of other characters (no-break spaces ...) are decoded.
    plain = np.logical_or.reduceat(visible & (values < 128), starts)
    wide = np.logical_or.reduceat(values >= 128, starts)
    for i in np.flatnonzero(wide & ~plain):
        plain[i] = bool(data[starts[i] : ends[i]].decode("utf-8", "replace").strip())
    return starts[plain]

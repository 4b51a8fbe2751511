"""Files that grow by whole pieces, also on a disk that fills up."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


class AppendFile:
    """A file at whose end `append` writes each piece completely or not at all. Nothing is buffered.

    Raises OSError where the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def append(self, data: bytes) -> None:
        """Raises OSError, naming the file, if `data` could not be written. The file is then as it was before."""
        end = os.fstat(self._fd).st_size
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            with suppress(OSError):  # not every file can be cut: a pipe, a device
                os.ftruncate(self._fd, end)
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Closes the file. A second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

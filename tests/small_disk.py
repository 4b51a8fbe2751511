"""A small file system that a test fills up."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


class SmallDisk:
    """folder: where it is mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, free: int = 0) -> None:
        """Leave `free` bytes, a multiple of 4096."""
        with suppress(OSError), open(self.folder / "filler", "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        path = self.folder / "filler"
        os.truncate(path, path.stat().st_size // 4096 * 4096 - free)

    def empty(self) -> None:
        (self.folder / "filler").unlink()

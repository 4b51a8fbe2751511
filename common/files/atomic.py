"""Files and folders written completely or not at all."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:  # numpy is slow to import, and command lines that answer --help import this file
    import numpy as np

log = logging.getLogger(__name__)


@contextmanager
def atomic_write(path: Path, sync: bool = True) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`, which replaces `path` if the block succeeds and is removed otherwise.

    sync: wait until the bytes are on the disk, so that a power cut leaves the old file or the new one.
    Raises OSError, naming `path`, where the disk does not take the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as f:
            _hold(handle)
            yield f
            f.flush()
            if sync:
                os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error  # that of a write names no file
        raise


@contextmanager
def new_folder(target: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Makes a temporary folder beside `target`, which is renamed to it if the block succeeds and removed otherwise.

    overwrite: replace a folder that exists. Raises FileExistsError if it exists and `overwrite` is False.
    """
    target = Path(target)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent, target.name)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    handle = os.open(temporary, os.O_RDONLY)
    _hold(handle)
    try:
        yield temporary
        shutil.rmtree(target, ignore_errors=True)  # unlike a file, a folder cannot be replaced in one step
        os.replace(temporary, target)
    finally:
        os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Removes what killed processes left of `atomic_write` and `new_folder` in `folder`, and logs it.

    name: of the file or folder that they wrote; None for any. What a process is writing stays.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        match = re.fullmatch(r"\.(.+?)(\.\w+)?\.tmp", path.name)
        if match and name in (None, match[1]) and _is_abandoned(path):
            log.info("%s: left by a process that was killed; removed", path)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _hold(handle: int) -> None:
    """Marks a temporary file or folder as one that a process is writing."""
    with suppress(OSError):  # a file system may not support locks
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_abandoned(path: Path) -> bool:
    """Returns whether no process holds a temporary file. False where that is unknown."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file, completely or not at all."""
    with atomic_write(path) as f:
        f.write(text.encode("utf-8"))


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file, completely or not at all."""
    import numpy as np

    content = io.BytesIO()
    np.save(content, array)
    with atomic_write(path) as file:
        file.write(content.getvalue())

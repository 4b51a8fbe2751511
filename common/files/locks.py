"""Lock files: one process at a time works in a place. A lock ends with its process, also if that is killed."""

from __future__ import annotations

import fcntl
import getpass
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

_held: set[IO[str]] = set()  # open lock files of this process


@contextmanager
def locked(path: Path) -> Iterator[str]:
    """Holds the lock file `path`, and yields "". Yields the holder instead if another process has it.

    Logs the holder of a lock file that a killed process left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    left = lock_holder(path) if path.is_file() else ""
    lock = take_lock(path)
    if lock is None:
        yield lock_holder(path) or "a process that has just started"
        return
    if left:
        log.warning("%s: taken over from a process that is gone: %s", path, left)
    try:
        lock.write(f"{this_process()}\n")
        lock.flush()
        yield ""
    finally:
        release_lock(lock, path)


def take_lock(path: Path, wait: bool = False) -> IO[str] | None:
    """Opens and locks a file, which is then empty unless `wait`.

    wait: until another process releases it. Returns None if another process has it. Warns where the file system has no
    locks.
    """
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            log.warning("%s: no locks on this file system (%s); start no second run on this folder", path, error)
        if _is_at(file, path):
            break
        file.close()  # its holder removed it between the two calls
    if not wait:
        file.truncate(0)
    _held.add(file)
    return file


def release_lock(lock: IO[str], path: Path) -> None:
    """Removes a lock file and unlocks it."""
    path.unlink(missing_ok=True)
    close_lock(lock)


def close_lock(lock: IO[str]) -> None:
    """Unlocks a lock file and keeps it."""
    _held.discard(lock)
    lock.close()


def lock_holder(path: Path) -> str:
    """The first line of a lock file, "" where it is gone."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except FileNotFoundError:
        return ""


def this_process() -> str:
    """User, host, number and time of this process, for a lock file."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may have no name for its user
        user = str(os.getuid())
    return f"user {user}, host {socket.gethostname()}, pid {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"


def _is_at(file: IO[str], path: Path) -> bool:
    """Whether an open file still has this path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _close_in_child() -> None:
    """Workers of a loader are forks. A worker that outlives a killed run must not keep its lock."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)

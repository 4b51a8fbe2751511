"""The worker processes of a DataLoader: which one ended, and which one is stopped."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_SECONDS = 10.0
END_SECONDS = 5.0
STOPPED_POLLS = 3  # a worker that is stopped at so many polls in a row is killed
FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)  # the sample may cause them


def start_workers(start: Callable[[], T]) -> tuple[T, list[BaseProcess]]:
    """Calls `start`, which makes the iterator of a DataLoader. Returns its result and the processes that it started.

    PyTorch's handler of SIGCHLD would raise an error in the middle of an update when a worker ends. It is removed, and
    the iterator raises the error when it waits for a batch.
    """
    before = set(multiprocessing.active_children())
    handler = signal.getsignal(signal.SIGCHLD)
    result = start()
    with suppress(ValueError):  # only the main thread may handle signals
        signal.signal(signal.SIGCHLD, handler)
    return result, sorted(set(multiprocessing.active_children()) - before, key=lambda process: process.pid or 0)


def lost_workers(workers: Sequence[BaseProcess], error: Exception) -> str:
    """Names the workers that have ended and how, "" while all are alive. error: what their iterator raised."""
    if isinstance(error, (ConnectionError, EOFError)):  # a connection is lost a moment before its process has ended
        ready = wait([worker.sentinel for worker in workers], END_SECONDS)
        for worker in workers:
            if worker.sentinel in ready:  # its files are closed, and it may have no exit status yet
                worker.join(END_SECONDS)
    texts = []
    for number, worker in enumerate(workers):
        status = worker.exitcode
        if status is not None:
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
            texts.append(f"loader worker {number} of {len(workers)} (pid {worker.pid}) {how}")
    return "; ".join(texts)


def died_of_fault(workers: Sequence[BaseProcess]) -> bool:
    """Whether a worker crashed, so that the same sample may crash this process too."""
    return any(worker.exitcode is not None and -worker.exitcode in FAULTS for worker in workers)


@contextmanager
def watched(workers: Sequence[BaseProcess]) -> Iterator[None]:
    """Inside, a worker that stays stopped (SIGSTOP) is logged and killed, so that its iterator raises an error.

    A worker that stopped for less than POLL_SECONDS * (STOPPED_POLLS - 1), or together with this process, goes on.
    """
    if not workers:
        yield
        return
    done = threading.Event()
    threading.Thread(target=_watch, args=(workers, done), daemon=True, name="loader-watch").start()
    try:
        yield
    finally:
        done.set()


def _watch(workers: Sequence[BaseProcess], done: threading.Event) -> None:
    polls = [0] * len(workers)
    while not done.wait(POLL_SECONDS):
        for number, worker in enumerate(workers):
            polls[number] = polls[number] + 1 if _is_stopped(worker.pid) else 0
            if polls[number] == STOPPED_POLLS and worker.pid is not None:
                seconds = POLL_SECONDS * (STOPPED_POLLS - 1)
                log.error("loader worker %d (pid %d) is stopped for %.0f s: killed", number, worker.pid, seconds)
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)


def _is_stopped(pid: int | None) -> bool:
    """Whether a process is in state T of Linux. False on other systems."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False

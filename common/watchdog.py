"""Ends a group of processes in which one makes no progress, with a line that names it and what it did last."""

from __future__ import annotations

import atexit
import json
import logging
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from common.failures import report_failure

log = logging.getLogger(__name__)

START_UP = 1800.0  # seconds, as PyTorch's own time-out: data sets are read and checkpoints are loaded
VERDICT = "verdict"


@dataclass(frozen=True)
class Activity:
    """What the main thread of a rank does.

    exchanges: begun so far. All ranks make the same ones, so the others wait for the ranks with the fewest. waiting:
    inside of one. steps: grows with every sign of progress. left: the rank has left the group.
    """

    host: str
    what: str = "joining the group"
    exchanges: int = 0
    steps: int = 0
    waiting: bool = False
    left: bool = False


def end_process(line: str) -> None:
    """Report `line` and end this process and those that it started, such as workers of a loader, at once."""
    if not report_failure(None, line, of_group=True):
        log.error("%s", line)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)


class Watchdog:
    """Watches the ranks of a group from a thread in each of them.

    The main thread calls `doing` and `exchanging`, which cost no communication. The thread publishes this in a store,
    and reads what the others published. A rank that others wait for, and that made no progress for `limit` seconds,
    ends all ranks.

    connect: returns a connection of its own to a store that all ranks share, with set, check and get.
    limit: seconds; START_UP, or `limit` if that is more, until `started` is called. end: is called with the line.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        rank: int,
        world: int,
        limit: float,
        end: Callable[[str], None] = end_process,
    ) -> None:
        self.rank, self.world = rank, world
        self.limit = max(limit, START_UP)
        self._step_limit = limit
        self._interval = min(5.0, limit / 100)
        self._connect, self._end = connect, end
        self._store: Any = None
        self._mine = Activity(socket.gethostname())
        self._seen: dict[int, tuple[Activity, float]] = {}  # rank -> activity, and when this process first read it
        self._answered = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()
        # A thread inside the store's C++ code, at the end of the interpreter, would abort the process.
        atexit.register(self.stop)

    def started(self) -> None:
        """The start-up is over: steps are short from now on."""
        self.limit = self._step_limit

    def stop(self) -> None:
        """This rank leaves the group."""
        atexit.unregister(self.stop)
        self._mine = replace(self._mine, left=True)
        self._stop.set()
        self._thread.join(timeout=5)

    def doing(self, what: str) -> None:
        self._mine = replace(self._mine, what=what, steps=self._mine.steps + 1)

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Context in which this rank waits for the others."""
        mine = self._mine
        self._mine = replace(mine, exchanges=mine.exchanges + 1, steps=mine.steps + 1, waiting=True)
        try:
            yield
        finally:
            self._mine = replace(self._mine, steps=self._mine.steps + 1, waiting=False)

    # ------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while True:
            leaving = self._stop.is_set()
            line = self._look()
            if leaving:
                return
            if line:
                self._stop.wait(2 * self._interval)  # the process that keeps the store ends after the others read it
                self._end(line)
                return
            self._stop.wait(self._interval)

    def _look(self) -> str:
        """Publish, read, judge. Returns the line to end with, "" to go on."""
        try:
            self._store = self._store or self._connect()
            self._store.set(str(self.rank), json.dumps(asdict(self._mine)))
            if self._store.check([VERDICT]):
                return str(self._store.get(VERDICT).decode())
            for rank in range(self.world):
                self._read(rank)
            self._answered = time.monotonic()
            line = self._judge()
            if line:
                self._store.set(VERDICT, line)
            return line
        except RuntimeError:  # of the connection: a rank is gone, or the one that keeps the store hangs
            self._store = None
            silent = time.monotonic() - self._answered
            if self._mine.waiting and silent > self.limit:
                return f"rank 0 hangs: its store has not answered for {silent:.0f} s (time-out {self.limit:g} s)"
            return ""

    def _read(self, rank: int) -> None:
        if not self._store.check([str(rank)]):
            found = Activity("a host that is not known yet")
        else:
            found = Activity(**json.loads(self._store.get(str(rank))))
        if rank not in self._seen or self._seen[rank][0] != found:
            self._seen[rank] = (found, time.monotonic())

    def _judge(self) -> str:
        """The line about ranks that hang, "" where there are none."""
        present = {rank: activity for rank, (activity, _) in self._seen.items() if not activity.left}
        # The end of all ranks takes some intervals, and comes within the limit.
        before = time.monotonic() - self.limit + 4 * self._interval
        still = [rank for rank in present if self._seen[rank][1] < before]
        fewest = min((activity.exchanges for activity in present.values()), default=0)
        behind = [rank for rank, activity in present.items() if activity.exchanges == fewest]
        ahead = [rank for rank in present if rank not in behind and (present[rank].waiting or rank in still)]
        all_wait = len(behind) == len(present) and any(activity.waiting for activity in present.values())
        if not (ahead or all_wait) or not set(behind) <= set(still):
            return ""
        ended = f"no progress for {self.limit:g} s, the time-out"
        if all_wait:
            shown = "; ".join(f"rank {rank} on {present[rank].host}: {present[rank].what}" for rank in present)
            return f"{ended}: all ranks wait for each other. {shown}"
        shown = "; ".join(f"rank {rank} on {present[rank].host} hangs in {present[rank].what!r}" for rank in behind)
        return f"{shown}: {ended}. Waiting for it: {_ranks(ahead)}"


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"

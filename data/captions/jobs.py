"""The queue of a download: which image is requested next, so that no host gets too many requests at a time."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from data.captions.table import TableLine

AHEAD = 10_000  # jobs that may wait for their host


@dataclass
class Job:
    """One image to download. tries: the number of requests so far."""

    row: TableLine
    tries: int = 0

    @property
    def host(self) -> str:
        try:
            return urlsplit(self.row.url).hostname or ""
        except ValueError:
            return ""


class Jobs:
    """Jobs in the order of the table, at most `per_host` of a host at a time. Jobs of other hosts overtake waiting
    jobs.

    take() returns None if no job can start now. The caller ends every job that it took by done() or again().
    """

    def __init__(self, source: Iterator[Job], per_host: int, ahead: int = AHEAD) -> None:
        self._source, self._per_host, self._ahead = source, per_host, ahead
        self._active: Counter[str] = Counter()
        self._waiting: defaultdict[str, deque[Job]] = defaultdict(deque)
        self._num_waiting = 0
        self._free: deque[str] = deque()  # hosts with a waiting job and a free place
        self._later: list[tuple[float, int, Job]] = []

    def take(self, now: float) -> Job | None:
        while self._later and self._later[0][0] <= now:
            if job := self._start(heapq.heappop(self._later)[2]):
                return job
        while self._free:
            host = self._free.popleft()
            if self._waiting[host] and self._active[host] < self._per_host:
                self._num_waiting -= 1
                return self._start(self._waiting[host].popleft())
        while self._num_waiting < self._ahead and (job := next(self._source, None)) is not None:
            if self._start(job):
                return job
        return None

    def done(self, job: Job) -> None:
        self._active[job.host] -= 1
        if self._waiting[job.host]:
            self._free.append(job.host)
        else:  # there are millions of hosts
            del self._waiting[job.host]
            if not self._active[job.host]:
                del self._active[job.host]

    def again(self, job: Job, when: float) -> None:
        """Ends an attempt and queues the job again, not before the time `when`."""
        self.done(job)
        heapq.heappush(self._later, (when, job.row.number, job))

    @property
    def is_waiting(self) -> bool:
        """Whether jobs are left that cannot start yet. Valid after take() returned None."""
        return bool(self._num_waiting or self._later)

    def _start(self, job: Job) -> Job | None:
        """Returns the job if its host has a free place. Otherwise the job waits."""
        if self._active[job.host] >= self._per_host:
            self._waiting[job.host].append(job)
            self._num_waiting += 1
            return None
        self._active[job.host] += 1
        return job

"""Signals as requests to stop a run after the current batch.

SIGTERM and SIGINT, SIGHUP of a closed terminal or a dropped ssh, and SIGUSR1, which SLURM sends with --signal=USR1@60.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Stopped(Exception):  # noqa: N818 - a request that was followed, not an error
    """Training ended early because of a signal, after its position was saved. signum: number of the signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class StopSignals:
    """Records the signals of this process inside `handled()`. signum: the last signal, 0 for none."""

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}  # signal -> the handler to restore, in the type that `signal` returns

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Inside, STOPS are recorded. A second SIGINT has its usual effect, an interrupt.

        SIGHUP stays ignored where it was, as `nohup` does.
        """
        try:
            for kind in STOPS:
                if kind != signal.SIGHUP or signal.getsignal(kind) != signal.SIG_IGN:
                    self._before[kind] = signal.signal(kind, self._record)
        except ValueError:  # only the main thread may handle signals
            self._before = {}
        try:
            yield
        finally:
            for signum, handler in self._before.items():
                signal.signal(signum, handler)
            self._before = {}

    def _record(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        log.warning("%s: saving the position after this batch", signal.Signals(signum).name)
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])

"""The speed of a run and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable


class Progress:
    """Measures speed over a window of batches. clock: seconds, monotonic.

    step: number of the last batch before the window, counted over the whole run.
    """

    def __init__(self, step: int = 0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.start(step)

    def start(self, step: int) -> None:
        """Begin a new window after batch `step`."""
        self._step, self._samples, self._since = step, 0, self._clock()

    def count(self, samples: int) -> None:
        """Add the samples of a batch of this process."""
        self._samples += samples

    def measure(self, step: int, remaining: int, world: int) -> tuple[float, float]:
        """Samples per second of all processes, and seconds until the end.

        step: the last batch of the window. remaining: batches after it. world: number of processes, which all have
        batches of the same size.
        """
        elapsed = self._clock() - self._since
        return self._samples * world / elapsed, remaining * elapsed / max(1, step - self._step)


def format_duration(seconds: float) -> str:
    """ "1d 2h 3m 4s", without the parts that are 0."""
    minutes = int(seconds // 60)
    parts = {"d": minutes // 1440, "h": minutes // 60 % 24, "m": minutes % 60, "s": int(seconds % 60)}
    return " ".join(f"{n}{unit}" for unit, n in parts.items() if n) or "0s"

"""Timing side by side: every candidate in turn, round after round, medians; the machine's own matrix product beside."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

MATRIX = 2048


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    candidates: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round. One round before them warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            synchronise(device)
            start = time.perf_counter()
            run()
            synchronise(device)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(times) for name, times in seconds.items()}


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the best of some 2048-cubed matrix products, what this machine reaches with the threads it has."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device).to(dtype) for _ in range(2))
    best = min(min(times) for times in interleaved({"product": lambda: a @ b}, 8, device).values())
    return 2 * MATRIX**3 / best


def device_name(device: torch.device) -> str:
    """ "NVIDIA H100", or the processor with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {torch.get_num_threads()} threads"


class Memory:
    """Context that watches memory: `peak` bytes beyond what was held at the start."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.peak = device, 0

    def __enter__(self) -> Memory:
        gc.collect()
        _give_back()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
            return self
        self._before, self._done = _resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device) - self._before
            return
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, _resident() - self._before)


def _give_back() -> None:
    """Return freed memory to the system, so that using it again counts."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

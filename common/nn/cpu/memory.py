"""Reuse of freed memory between the steps of a run on a CPU."""

from __future__ import annotations

import ctypes

import torch

# Options of mallopt(3): allocate large blocks on the heap, and never shrink the heap.
_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -4, -1, -2


def keep_freed_memory(device: torch.device) -> bool:
    """Tell glibc to reuse freed memory instead of returning it. Returns whether mallopt accepted it.

    By default glibc requests each large block from the system again, which then clears its pages. That takes a fifth
    of a training step (docs/results.md). The peak of memory does not change.
    """
    if device.type != "cpu":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    options = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 2**26}
    return all(mallopt(option, value) for option, value in options.items())

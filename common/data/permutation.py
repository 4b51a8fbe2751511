"""Permutations of a dataset and seeds of its samples, as pure functions of integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FEISTEL_ROUNDS = 6
_MASK64 = (1 << 64) - 1


def sample_seed(base_seed: int, epoch: int, index: int) -> int:
    """Returns the seed of one sample in one epoch: 64 bits, the same on every platform and version."""
    state = 0
    for value in (base_seed, epoch, index):
        state = _mix((state + value + 0x9E3779B97F4A7C15) & _MASK64)
    return state


def _mix(x: int) -> int:
    """The finalizer of SplitMix64: a bijection of 64 bits in which every bit of x affects every bit of the result."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def scattered(positions: Tensor, length: int, seed: int) -> Tensor:
    """Returns where a permutation of 0 .. length - 1 maps `positions` [n], without the permutation in memory.

    A Feistel network permutes 0 .. P - 1, where P is the next power of four. A result of `length` or more goes through
    the network again until it is below `length`, so the result is a permutation of 0 .. length - 1.
    """
    half = max(1, (length - 1).bit_length() + 1 >> 1)
    keys = [np.uint64(sample_seed(seed, i, length)) for i in range(FEISTEL_ROUNDS)]
    values = positions.numpy().astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], np.uint64(half), keys)
        outside = values >= length
    return torch.from_numpy(values.astype(np.int64))


def _feistel(values: NDArray[np.uint64], half: np.uint64, keys: Sequence[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of numbers of 2 * half bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        x = (right ^ key) * np.uint64(0xBF58476D1CE4E5B9)  # the product of arrays wraps around without a warning
        x = (x ^ (x >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
        left, right = right, left ^ (x >> (np.uint64(64) - half))
    return left << half | right


def together(order: Tensor, image_keys: Tensor) -> Tensor:
    """Returns `order` [n] with the samples of an image moved to the place of the first of them.

    image_keys: int64 [length of the dataset]. Samples of one image keep their order among themselves.
    """
    _, group = image_keys[order].unique(return_inverse=True)
    places = torch.arange(len(order))
    first = places.new_full((len(order),), len(order)).scatter_reduce(0, group, places, "amin")
    return order[first[group].argsort(stable=True)]

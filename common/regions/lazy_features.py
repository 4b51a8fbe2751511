"""Region features that stay in a packed store until a batch needs them.

Features are most of a batch's bytes: 26 MB of 32 images with 100 boxes each. A sample and the message of a loader's
worker therefore carry `LazyFeatures`, which say where the features are. The process that uses the batch copies them
once, from its own memory map to their place in the batch.
"""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import RegionError

MAX_MAPPED_FILES = 64


@dataclass(frozen=True)
class FeatureFile:
    """A file of region features in row-major order. Equal values share one memory map in each process.

    path: of the file. dtype: "float32" or "float16", little-endian. shape: regions of all images, and the width D.
    modified: the file's modification time in nanoseconds. A file with another time was replaced.
    """

    path: str
    dtype: str
    shape: tuple[int, int]
    modified: int

    @classmethod
    def open(cls, path: str | os.PathLike[str], dtype: str, shape: tuple[int, int]) -> FeatureFile:
        """Describes the file as it is now."""
        return cls(str(path), dtype, shape, os.stat(path).st_mtime_ns)


@dataclass(frozen=True, eq=False)
class LazyFeatures:
    """float32 [R, D] region features of one image, which `read` copies from their file.

    file: of all images' features. start, stop: the rows of this image in it. indices: int64 [n], the regions that are
    used, counted from `start`, in this order; None for all of them. first: float32 [D], a feature in front of those, or
    None. means, image: file of the mean features of images, and the row of this image in it; None where the store has
    no such file. (Arrays travel inside a worker's message. A tensor would get shared memory of its own, which takes
    longer.)
    """

    file: FeatureFile
    start: int
    stop: int
    indices: NDArray[np.int64] | None = None
    first: NDArray[np.float32] | None = None
    means: FeatureFile | None = None
    image: int = 0

    def __len__(self) -> int:
        count = self.stop - self.start if self.indices is None else len(self.indices)
        return count + (self.first is not None)

    @property
    def shape(self) -> tuple[int, int]:
        """(R, D)."""
        return len(self), self.file.shape[1]

    def select(self, indices: Tensor | Sequence[int]) -> LazyFeatures:
        """The features of some regions, unread. indices: int64 [n], counted among those of this object.

        Raises ValueError after `with_first`, and IndexError for an index below 0 or past the last region.
        """
        if self.first is not None:
            raise ValueError("select the regions before the feature of the whole image is put in front of them")
        chosen = torch.as_tensor(indices, dtype=torch.int64).numpy().copy()
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"regions {chosen.min()} to {chosen.max()} of {len(self)}")
        return replace(self, indices=chosen if self.indices is None else self.indices[chosen], means=None)

    def with_first(self, feature: Tensor) -> LazyFeatures:
        """`feature` [D] and then these features, unread. Raises ValueError if there is a first one already."""
        if self.first is not None:
            raise ValueError("there is a feature in front of the regions already")
        return replace(self, first=feature.float().numpy(), means=None)

    def mean(self) -> Tensor:
        """float32 [D], the mean of the features. Reads them, unless they are all of the image and the store has it."""
        if self.means is None:
            return self.read().mean(0)
        return _mapped(self.means).features[self.image].clone()

    def read(self) -> Tensor:
        """float32 [R, D], a copy in memory. Raises RegionError if the file was replaced since the store was opened."""
        out = torch.empty(self.shape, dtype=torch.float32)
        self.copy_to(out)
        return out

    def copy_to(self, out: Tensor) -> None:
        """Writes the features to `out`, float32 [R, D]. Raises what `read` raises."""
        if self.first is not None:
            out[0] = torch.from_numpy(self.first)
            out = out[1:]
        stored = _mapped(self.file).features[self.start : self.stop]
        if self.indices is None:
            _copy(out, stored)
        elif stored.dtype == out.dtype:
            np.take(stored.numpy(), self.indices, axis=0, out=out.numpy(), mode="clip")  # other modes copy once more
        else:
            _copy(out, torch.from_numpy(stored.numpy()[self.indices]))

    def prefetch(self) -> None:
        """Asks the system to load these features from the disk, without waiting for it.

        A worker calls this, so that the process that copies them later finds them in the page cache.
        """
        row = self.file.shape[1] * np.dtype(self.file.dtype).itemsize
        first = self.start * row // mmap.PAGESIZE * mmap.PAGESIZE
        _mapped(self.file).memory.madvise(mmap.MADV_WILLNEED, first, self.stop * row - first)


Features: TypeAlias = Tensor | LazyFeatures


def read_features(features: Features) -> Tensor:
    """float32 [R, D]: the features in memory, read if they are not."""
    return features.read() if isinstance(features, LazyFeatures) else features


def select_features(features: Features, indices: Tensor | Sequence[int]) -> Features:
    """The features of the regions `indices` [n], in this order. Lazy features stay lazy."""
    if isinstance(features, LazyFeatures):
        return features.select(indices)
    return features[torch.as_tensor(indices, dtype=torch.int64)]


def mean_feature(features: Features) -> Tensor:
    """float32 [D], the mean of the features [R, D]."""
    return features.mean() if isinstance(features, LazyFeatures) else features.mean(0)


def put_first(feature: Tensor, features: Features) -> Features:
    """`feature` [D] and then `features` [R, D]: [R + 1, D]. Lazy features stay lazy."""
    if isinstance(features, LazyFeatures):
        return features.with_first(feature)
    return torch.cat([feature[None], features])


def read_padded(items: Sequence[Features], pinned: bool = False) -> Tensor:
    """float32 [n, largest R, D]: the features of each item, zeros below. pinned: in page-locked memory."""
    out = torch.empty(len(items), max(map(len, items)), items[0].shape[1], dtype=torch.float32, pin_memory=pinned)
    for rows, item in zip(out, items, strict=True):
        if isinstance(item, LazyFeatures):
            item.copy_to(rows[: len(item)])
        else:
            _copy(rows[: len(item)], item)
        rows[len(item) :].numpy().fill(0)
    return out


class _Mapped(NamedTuple):
    """memory: a file's memory map. features: [N, D], the same bytes, to be read only (a write crashes the process)."""

    memory: mmap.mmap
    features: Tensor


@lru_cache(MAX_MAPPED_FILES)
def _mapped(file: FeatureFile) -> _Mapped:
    with open(file.path, "rb") as opened:
        if os.fstat(opened.fileno()).st_mtime_ns != file.modified:
            raise RegionError(f"{file.path}: another store took its place during the run")
        memory = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    features = np.frombuffer(memory, np.dtype(file.dtype).newbyteorder("<")).reshape(file.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        return _Mapped(memory, torch.from_numpy(features))


# PyTorch splits work of this size or more among threads and waits for the slowest. With loader processes on every core
# that wait can be a hundred times as long as the work, so `_copy` converts smaller pieces.
SMALL = 2**15


def _copy(out: Tensor, features: Tensor) -> None:
    """Copies `features` [R, D] of any floating dtype to `out`, float32 [R, D]."""
    if features.dtype == out.dtype:
        out.numpy()[:] = features.numpy()
        return
    count = max(1, (SMALL - 1) // out.shape[1])  # PyTorch converts float16 three times as fast as NumPy does
    for part, some in zip(out.split(count), features.split(count), strict=True):
        part.copy_(some)

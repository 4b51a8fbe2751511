"""Region features that stay in a packed store until they are needed: best of all, until there is a batch to write to.

Features are most of a batch's bytes (26 MB of 32 images with 100 boxes each), so every copy of them counts. A sample
and the message of a worker process carry `StoredRows`; the process that uses the batch copies the rows once, from its
own memory map to their place in the batch.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from common.regions.regions import PackedRegions


HEADROOM = 2**22  # a buffer's length is a multiple of it, so that it fits a somewhat larger batch too

# What is known of rows that are not read.
_KNOWN = {Tensor.shape.__get__, Tensor.dtype.__get__, Tensor.dim, Tensor.size}  # type: ignore[attr-defined]


class StoredRows(Tensor):
    """float32 [R, D], to be read: the features `start` .. `stop` of a packed store, maybe with one row before them.

    A tensor to all who use it: whatever asks for more than the shape reads the rows, once, into memory of their own.

    with_first: a row comes before them, that of the whole image: `first` [D], or the mean of the others where that is
    None. image: number of the store's image that they are all of; the store may have their mean.
    """

    def __new__(
        cls, store: PackedRegions, start: int, stop: int, with_first: bool = False, *rest: Any, **options: Any
    ) -> StoredRows:
        # The meta device: code that got past __torch_function__ would fail, not see numbers that are none.
        shape = stop - start + with_first, store.meta["columns"]["features"]
        return torch.empty(shape, dtype=torch.float32, device="meta").as_subclass(cls)

    def __init__(
        self,
        store: PackedRegions,
        start: int,
        stop: int,
        with_first: bool = False,
        first: Tensor | None = None,
        image: int | None = None,
    ) -> None:
        self.store, self.start, self.stop, self.with_first, self.first = store, start, stop, with_first, first
        self.image = image

    def __len__(self) -> int:
        return self.stop - self.start + self.with_first

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in _KNOWN:
            return super().__torch_function__(function, types, args, kwargs)
        args, kwargs = tree_map_only(StoredRows, lambda rows: rows.loaded, (args, kwargs or {}))
        return function(*args, **kwargs)

    @cached_property
    def loaded(self) -> Tensor:
        """The rows in memory, a plain tensor."""
        out = torch.empty(self.shape, dtype=torch.float32)
        self.copy_to(out)
        return out

    @property
    def unread(self) -> bool:
        """Whether the rows are still what the store has."""
        return "loaded" not in self.__dict__

    def after(self, first: Tensor | None) -> StoredRows:
        """These rows, unread and without a first one, with `first` [D] or their mean before them."""
        assert self.unread and not self.with_first, "what was read may have been changed"
        if first is None and self.image is not None:
            first = self.store.mean(self.image)
        return StoredRows(self.store, self.start, self.stop, True, first)

    def copy_to(self, out: Tensor) -> None:
        """Write the rows to `out`, float32 [R, D]."""
        rest = out[1:] if self.with_first else out
        _copy(rest, self.store.mapped_features(self.start, self.stop))
        if self.with_first:
            out[0] = _mean(rest) if self.first is None else self.first

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        assert self.unread, "collate sends what was read as a tensor"
        self.store.expect(self.start, self.stop)
        first = self.first
        if self.with_first and first is None:  # by the worker, which has the time
            first = _mean(self.store.mapped_features(self.start, self.stop).float())
        # An array travels in the message itself. A tensor would get shared memory of its own, which takes far longer.
        return _from_message, (
            self.store,
            self.start,
            self.stop,
            self.with_first,
            None if first is None else first.numpy(),
        )


def _from_message(
    store: PackedRegions, start: int, stop: int, with_first: bool, first: np.ndarray | None
) -> StoredRows:
    return StoredRows(store, start, stop, with_first, None if first is None else torch.from_numpy(first))


def read_padded(items: Sequence[StoredRows], empty: Callable[..., Tensor] = torch.empty) -> Tensor:
    """float32 [n, largest R, D]: the rows of each item, zeros below. empty: gives memory of a shape."""
    out = empty((len(items), max(map(len, items)), items[0].shape[1]))
    for rows, item in zip(out, items, strict=True):
        item.copy_to(rows[: len(item)])
        rows[len(item) :].numpy().fill(0)
    return out


class Buffers:
    """Memory for one batch after the other: that of a batch which is gone is written again.

    Memory that is fresh from the system costs a page fault for every 4 KiB, together more than the copy into it.
    """

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque(maxlen=2)

    def empty(self, shape: Sequence[int]) -> Tensor:
        """float32 of this shape, with any values. It is free again when no tensor shares its memory any more."""
        size = math.prod(shape)
        memory = self._free.pop() if self._free else None
        if memory is None or len(memory) < size:
            memory = np.empty(-(-size // HEADROOM) * HEADROOM, np.float32)  # what is not written takes no memory
        used = memory[:size]
        weakref.finalize(used, self._free.append, memory).atexit = False
        return torch.from_numpy(used).view(*shape)


# PyTorch shares work of this size among threads, of which each waits for the slowest. Beside loader processes on every
# core that wait can be a hundred times as long as the work, so here it is cut into pieces below that.
SMALL = 2**15


def _copy(out: Tensor, rows: Tensor) -> None:
    """`rows` [R, D] of any floating dtype to `out`, float32 [R, D]."""
    if out.dtype == rows.dtype:
        out.numpy()[:] = rows.numpy()
        return
    count = (SMALL - 1) // out.shape[1]
    for part, some in zip(out.split(count), rows.split(count), strict=True):
        part.copy_(some)


def _mean(rows: Tensor) -> Tensor:
    """`rows.mean(0)`, bit for bit: pieces of whole vector registers add up in the same order."""
    if torch.get_num_threads() == 1:
        return rows.mean(0)
    width = max(1, (SMALL - 1) // len(rows) // 64) * 64
    return torch.cat([part.mean(0) for part in rows.split(width, dim=1)])

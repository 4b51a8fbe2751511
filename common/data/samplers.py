"""The order of samples: a function of seed, epoch and position, so that a run can stop and go on anywhere.

See spec 04 §3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

_MASK64 = (1 << 64) - 1


def sample_seed(base_seed: int, epoch: int, index: int) -> int:
    """The seed of one sample in one epoch: 64 bits, the same on every platform and version."""
    state = 0
    for value in (base_seed, epoch, index):
        state = _mix((state + value + 0x9E3779B97F4A7C15) & _MASK64)
    return state


def _mix(x: int) -> int:
    """The finalizer of SplitMix64: a bijection of 64 bits in which every bit of x moves every bit of the result."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


class EpochSampler:
    """Which samples a rank sees in an epoch, and in which order.

    length: size of the dataset. shuffle: a permutation seeded by epoch + seed; seed 0 gives the original's order.
    pad: the order is extended by its own head until every rank has equally many (training); without, each sample
    belongs to exactly one rank (evaluation).
    Raises ValueError for an empty dataset or a rank outside the world.
    """

    def __init__(
        self, length: int, shuffle: bool, rank: int = 0, world: int = 1, pad: bool = True, seed: int = 0
    ) -> None:
        if length < 1:
            raise ValueError("the dataset has no samples: check the image set and the annotation file of this split")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} in a world of {world}")
        self.length, self.shuffle, self.rank, self.world, self.pad, self.seed = length, shuffle, rank, world, pad, seed

    def order(self, epoch: int) -> Tensor:
        """The epoch's order of the whole dataset: int64 [length]."""
        if not self.shuffle:
            return torch.arange(self.length)
        return torch.randperm(self.length, generator=torch.Generator().manual_seed(self.seed + epoch))

    def indices(self, epoch: int) -> Tensor:
        """This rank's contiguous part of the padded order: int64 [n], the same n on every rank."""
        count = -(-self.length // self.world)
        start, end = self.rank * count, (self.rank + 1) * count
        return self.order(epoch)[torch.arange(start, end) % self.length]  # wraps around to the head


def plain_batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """The order in pieces of `batch_size`; the last one may be shorter."""
    return list(order.split(batch_size))


def grouped_batches(order: Tensor, group_ids: Tensor, batch_size: int) -> list[Tensor]:
    """Batches with samples of one group each, ordered by the position of their first sample (spec 04 §3.2).

    order: int64 [n] dataset indices. group_ids: int64 [length of the dataset], for example 0 wide and 1 upright.
    The last batch of a group may be shorter.
    """
    groups = group_ids[order]
    batches = []
    for group in groups.unique():
        positions = (groups == group).nonzero().flatten()
        batches += [(int(chunk[0]), order[chunk]) for chunk in positions.split(batch_size)]
    return [batch for _, batch in sorted(batches, key=lambda item: item[0])]


class BatchSampler(Sampler[list[tuple[int, int]]]):
    """For `DataLoader(batch_sampler=...)`: lists of (index, seed), the seed `sample_seed(base_seed, epoch, index)`.

    sampler: the order. group_ids: group of each sample of the dataset, to keep groups apart, or None. With groups and
    several ranks the batches of the whole order are dealt out in turn; where their number is uneven, the first ones are
    dealt once more, so that every rank has equally many. A sampler that does not pad (evaluation) gives each rank
    contiguous whole batches of the one order: ranks may differ by a batch, and every batch is what one process would
    have computed, to the last bit.

    The position is where the next iteration starts, which only its user moves: loader workers run ahead of training,
    so a count kept here would be wrong. `len` is the number of batches of a full epoch; it is the same in every epoch
    and does not depend on the position.
    """

    def __init__(
        self, sampler: EpochSampler, batch_size: int, group_ids: Sequence[int] | None = None, base_seed: int = 0
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size}: expected 1 or more")
        if group_ids is not None and len(group_ids) != sampler.length:
            raise ValueError(f"{len(group_ids)} group ids for a dataset of {sampler.length} samples")
        self.sampler, self.batch_size, self.base_seed = sampler, batch_size, base_seed
        self.group_ids = None if group_ids is None else torch.as_tensor(group_ids)
        self.epoch = self.start_batch = 0
        self._length = len(self.batches(0))

    def batches(self, epoch: int) -> list[Tensor]:
        """This rank's batches of an epoch, int64 [<= batch_size] each."""
        rank, world = self.sampler.rank, self.sampler.world
        if self.group_ids is None and self.sampler.pad:
            return plain_batches(self.sampler.indices(epoch), self.batch_size)
        order = self.sampler.order(epoch)
        if self.group_ids is None:
            batches = plain_batches(order, self.batch_size)
        else:
            batches = grouped_batches(order, self.group_ids, self.batch_size)
        count = len(batches)
        if not self.sampler.pad:
            return batches[count * rank // world : count * (rank + 1) // world]
        return [batches[i % count] for i in range(rank, -(-count // world) * world, world)]

    def set_position(self, epoch: int, start_batch: int = 0) -> None:
        """The next iteration gives the batches of `epoch` from `start_batch` on. Raises ValueError past the end."""
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start at batch {start_batch} of an epoch of {len(self)} batches")
        self.epoch, self.start_batch = epoch, start_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # Not a generator itself: that would read the position at the first batch, after it may have been moved on.
        return self._iterate(self.epoch, self.start_batch)

    def _iterate(self, epoch: int, start_batch: int) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches(epoch)[start_batch:]:
            yield [(index, sample_seed(self.base_seed, epoch, index)) for index in batch.tolist()]

    def __len__(self) -> int:
        return self._length

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in."""
        return {"epoch": self.epoch, "start_batch": self.start_batch, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for a position inside an epoch that was of other batches; the start of one always fits."""
        changed = [f"{k} {state[k]} -> {v}" for k, v in self._identity().items() if state[k] != v]
        if state["start_batch"] and changed:
            raise ValueError(f"cannot go on inside epoch {state['epoch']}, its batches changed: {', '.join(changed)}")
        self.set_position(state["epoch"], state["start_batch"])

    def _identity(self) -> dict[str, Any]:
        sampler = self.sampler
        return {
            "length": sampler.length,
            "shuffle": sampler.shuffle,
            "world": sampler.world,
            "seed": sampler.seed,
            "batch_size": self.batch_size,
            "grouped": self.group_ids is not None,
            "base_seed": self.base_seed,
        }

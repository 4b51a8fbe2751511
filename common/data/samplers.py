"""The order of samples: a function of seed, epoch and position, so that a run can stop and go on anywhere.

See spec 04 §3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

LARGE = 1 << 24  # samples; a written-out permutation of so many takes 128 MiB in every process
FEISTEL_ROUNDS = 6
MOST_SHARED = 8  # samples of a batch in evaluation for each of its images: RefCOCO+ has 7 on average, VCR 2.6
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
    images: the image of each sample of the dataset, or None. With them the samples of an image follow each other,
    in their order, from where the first of them stood.
    From LARGE samples on the permutation is computed position by position, so that memory does not grow.
    Raises ValueError for an empty dataset, a rank outside the world, or images of another dataset.
    """

    def __init__(
        self,
        length: int,
        shuffle: bool,
        rank: int = 0,
        world: int = 1,
        pad: bool = True,
        seed: int = 0,
        images: Sequence[int] | None = None,
    ) -> None:
        if length < 1:
            raise ValueError("the dataset has no samples: check the image set and the annotation file of this split")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} in a world of {world}")
        self.length, self.shuffle, self.rank, self.world, self.pad, self.seed = length, shuffle, rank, world, pad, seed
        if images is not None and len(images) != length:
            raise ValueError(f"{len(images)} images for a dataset of {length} samples")
        self.images = None if images is None else torch.as_tensor(images)
        self._kept: tuple[int, Tensor] | None = None  # the permutation of the last epoch that was asked for

    @property
    def count(self) -> int:
        """Samples of each rank in the padded order."""
        return -(-self.length // self.world)

    def part(self, epoch: int, start: int, stop: int) -> Tensor:
        """int64 [stop - start]: the samples at these positions of the epoch's order, which goes round and round."""
        positions = torch.arange(start, stop) % self.length
        if not self.shuffle and self.images is None:
            return positions
        if self.length >= LARGE and self.images is None:
            return scattered(positions, self.length, self.seed + epoch)
        if self._kept is None or self._kept[0] != epoch:
            self._kept = epoch, self._written_out(epoch)
        return self._kept[1][positions]

    def _written_out(self, epoch: int) -> Tensor:
        order = torch.arange(self.length)
        if self.shuffle:
            order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.seed + epoch))
        return order if self.images is None else together(order, self.images)

    def indices(self, epoch: int) -> Tensor:
        """This rank's contiguous part of the padded order: int64 [count]."""
        return self.part(epoch, self.rank * self.count, (self.rank + 1) * self.count)


def scattered(positions: Tensor, length: int, seed: int) -> Tensor:
    """The images of positions [n] under a permutation of 0 .. length - 1 that is never written down.

    A Feistel network permutes the next power of four; images beyond the end are permuted again until they are inside.
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
        x = (right ^ key) * np.uint64(0xBF58476D1CE4E5B9)  # arrays wrap around in silence
        x = (x ^ (x >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
        left, right = right, left ^ (x >> (np.uint64(64) - half))
    return left << half | right


def together(order: Tensor, images: Tensor) -> Tensor:
    """`order` [n], changed so that the samples of an image follow each other from where the first of them stood.

    images: int64 [length of the dataset].
    """
    _, group = images[order].unique(return_inverse=True)
    places = torch.arange(len(order))
    first = places.new_full((len(order),), len(order)).scatter_reduce(0, group, places, "amin")
    return order[first[group].argsort(stable=True)]


def image_batches(order: Tensor, images: Tensor, batch_size: int) -> list[Tensor]:
    """Batches of all samples of up to `batch_size` images, and of up to MOST_SHARED times as many samples.

    order: as `together` gives it. An image with more samples than a batch can have is in several batches.
    """
    most = MOST_SHARED * batch_size
    _, runs = images[order].unique_consecutive(return_counts=True)
    batches, start, samples, count = [], 0, 0, 0  # of the batch that is being filled
    for run in (part for size in runs.tolist() for part in [most] * (size // most) + [size % most] if part):
        if count == batch_size or samples + run > most:
            batches.append(order[start : start + samples])
            start, samples, count = start + samples, 0, 0
        samples, count = samples + run, count + 1
    return [*batches, order[start:]]


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
    A sampler that knows images gives evaluation batches of `batch_size` images with all of their samples
    (`picture_batches`); in training a batch stays one of `batch_size` samples, and the samples of an image have one
    seed, so that they show it the same way.

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
        # Batches that do not follow from their number: those of the last epoch are kept.
        self._written = group_ids is not None or (sampler.images is not None and not sampler.pad)
        self._dealt: tuple[int, list[Tensor]] | None = None
        self._length = self._count()

    def batch(self, epoch: int, number: int) -> Tensor:
        """This rank's batch `number` of an epoch: int64 [<= batch_size]."""
        sampler, size = self.sampler, self.batch_size
        if self._written:
            return self._grouped(epoch)[number]
        if sampler.pad:
            first, last = sampler.rank * sampler.count, (sampler.rank + 1) * sampler.count
        else:
            first, last = self._whole_batches(-(-sampler.length // size)).start * size, sampler.length
        start = first + number * size
        return sampler.part(epoch, start, min(start + size, last))

    def _count(self) -> int:
        if self._written:
            return len(self._grouped(0))
        if self.sampler.pad:
            return -(-self.sampler.count // self.batch_size)
        return len(self._whole_batches(-(-self.sampler.length // self.batch_size)))

    def _grouped(self, epoch: int) -> list[Tensor]:
        if self._dealt is None or self._dealt[0] != epoch:
            order = self.sampler.part(epoch, 0, self.sampler.length)
            if self.group_ids is not None:
                batches = grouped_batches(order, self.group_ids, self.batch_size)
            else:
                assert self.sampler.images is not None
                batches = image_batches(order, self.sampler.images, self.batch_size)
            self._dealt = epoch, [batches[i] for i in self._dealt_numbers(len(batches))]
        return self._dealt[1]

    def _dealt_numbers(self, count: int) -> list[int]:
        """Which of `count` batches are this rank's."""
        rank, world = self.sampler.rank, self.sampler.world
        if not self.sampler.pad:
            return list(self._whole_batches(count))
        return [i % count for i in range(rank, -(-count // world) * world, world)]

    def _whole_batches(self, count: int) -> range:
        """Contiguous numbers of `count` batches that are this rank's in evaluation."""
        rank, world = self.sampler.rank, self.sampler.world
        return range(count * rank // world, count * (rank + 1) // world)

    def set_position(self, epoch: int, start_batch: int = 0) -> None:
        """The next iteration gives the batches of `epoch` from `start_batch` on. Raises ValueError past the end."""
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start at batch {start_batch} of an epoch of {len(self)} batches")
        self.epoch, self.start_batch = epoch, start_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # Not a generator itself: that would read the position at the first batch, after it may have been moved on.
        return self._iterate(self.epoch, self.start_batch)

    def _iterate(self, epoch: int, start_batch: int) -> Iterator[list[tuple[int, int]]]:
        for number in range(start_batch, len(self)):
            batch = self.batch(epoch, number)
            images = self.sampler.images
            drawn = batch if images is None else images[batch]
            yield [
                (i, sample_seed(self.base_seed, epoch, n)) for i, n in zip(batch.tolist(), drawn.tolist(), strict=True)
            ]

    def __len__(self) -> int:
        return self._length

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in."""
        return {"epoch": self.epoch, "start_batch": self.start_batch, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for a position inside an epoch that was of other batches; the start of one always fits."""
        changed = [f"{k} {state[k]} -> {v}" for k, v in self._identity().items() if state.get(k, v) != v]
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
            "images": sampler.images is not None,
            "base_seed": self.base_seed,
        }

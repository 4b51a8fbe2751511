"""The order of samples: a function of seed, epoch and position, so that a run can resume at any position.

See original 4.8 to 4.10.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from common.data.permutation import sample_seed, scattered, together
from common.errors import DataError

LARGE = 1 << 24  # samples; a permutation of so many takes 128 MiB in every process
MOST_SHARED = 8  # samples of a batch in evaluation for each of its images: shipped data sets have 2.6 to 7 on average


class EpochSampler:
    """Which samples a rank sees in an epoch, and in which order.

    length: size of the dataset. shuffle: permute the samples; the epoch is the seed, as in the original.
    pad: repeat the head of the order at its end until every rank has equally many samples (training). Otherwise each
        sample belongs to exactly one rank (evaluation).
    image_keys: int [length], equal for samples of one image, or None. With keys the samples of an image follow each
        other, in their order, from the place of the first of them.
    A dataset of LARGE samples or more has a permutation that is computed position by position, in constant memory.
    Raises DataError for an empty dataset, and ValueError for a rank outside the world or a wrong number of image keys.
    """

    def __init__(
        self,
        length: int,
        shuffle: bool,
        rank: int = 0,
        world: int = 1,
        pad: bool = True,
        image_keys: Sequence[int] | None = None,
    ) -> None:
        if length < 1:
            raise DataError("the dataset has no samples: check the image set and the annotation file of this split")
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} in a world of {world}")
        self.length, self.shuffle, self.rank, self.world, self.pad = length, shuffle, rank, world, pad
        if image_keys is not None and len(image_keys) != length:
            raise ValueError(f"{len(image_keys)} image keys for a dataset of {length} samples")
        self.image_keys = None if image_keys is None else torch.as_tensor(image_keys)
        self._kept: tuple[int, Tensor] | None = None  # the last epoch that `part` was called for, and its order

    @property
    def count(self) -> int:
        """Number of samples of each rank in the padded order."""
        return -(-self.length // self.world)

    def part(self, epoch: int, start: int, stop: int) -> Tensor:
        """int64 [stop - start]: the samples at these positions of the epoch's order. Past its end the order repeats."""
        positions = torch.arange(start, stop) % self.length
        if not self.shuffle and self.image_keys is None:
            return positions
        if self.length >= LARGE and self.image_keys is None:
            return scattered(positions, self.length, epoch)
        if self._kept is None or self._kept[0] != epoch:
            self._kept = epoch, self._order(epoch)
        return self._kept[1][positions]

    def _order(self, epoch: int) -> Tensor:
        order = torch.arange(self.length)
        if self.shuffle:
            order = torch.randperm(self.length, generator=torch.Generator().manual_seed(epoch))
        return order if self.image_keys is None else together(order, self.image_keys)


def image_batches(order: Tensor, image_keys: Tensor, batch_size: int) -> list[Tensor]:
    """Batches of all samples of up to `batch_size` images, and of up to MOST_SHARED times as many samples.

    order: int64 [n] as `together` returns it. image_keys: int64 [length of the dataset]. An image with more samples
    than a batch can have is in several batches.
    """
    most = MOST_SHARED * batch_size
    _, runs = image_keys[order].unique_consecutive(return_counts=True)
    batches, start, samples, count = [], 0, 0, 0  # of the batch that is filled now
    for run in (part for size in runs.tolist() for part in [most] * (size // most) + [size % most] if part):
        if count == batch_size or samples + run > most:
            batches.append(order[start : start + samples])
            start, samples, count = start + samples, 0, 0
        samples, count = samples + run, count + 1
    return [*batches, order[start:]]


def grouped_batches(order: Tensor, group_ids: Tensor, batch_size: int) -> list[Tensor]:
    """Batches with samples of one group each, ordered by the position of their first sample (original 4.9).

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

    sampler: the order. group_ids: int [length], the group of each sample, so that a batch has samples of one group; or
    None.

    Training (a sampler that pads): every rank has equally many batches. With groups the ranks take turns at the batches
    of the whole order; if these cannot be divided evenly, the first ones are repeated at the end. With image keys a
    batch still has `batch_size` samples, and the samples of an image have one seed, so that they flip alike.

    Evaluation: each rank has contiguous whole batches of the one order. Ranks may differ by one batch, and every batch
    is bit for bit that of a single process. With image keys a batch has `batch_size` images with all of their samples
    (`image_batches`).

    The position is where the next iteration starts. Only the caller changes it: loader workers run ahead of training,
    so a count kept here would be wrong. `len` is the number of batches of a full epoch; it is the same in every epoch
    and does not depend on the position.

    Raises ValueError for a batch size below 1 or a wrong number of group ids.
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
        # Batches of groups or of images have to be listed from the first one on: those of the last epoch are kept.
        self._listed = group_ids is not None or (sampler.image_keys is not None and not sampler.pad)
        self._kept: tuple[int, list[Tensor]] | None = None
        self._length = self._count()

    def batch(self, epoch: int, number: int) -> Tensor:
        """int64 [n]: the samples of this rank's batch `number` of an epoch."""
        sampler, size = self.sampler, self.batch_size
        if self._listed:
            return self._grouped(epoch)[number]
        if sampler.pad:
            first, last = sampler.rank * sampler.count, (sampler.rank + 1) * sampler.count
        else:
            first, last = self._whole_batches(-(-sampler.length // size)).start * size, sampler.length
        start = first + number * size
        return sampler.part(epoch, start, min(start + size, last))

    def _count(self) -> int:
        if self._listed:
            return len(self._grouped(0))
        if self.sampler.pad:
            return -(-self.sampler.count // self.batch_size)
        return len(self._whole_batches(-(-self.sampler.length // self.batch_size)))

    def _grouped(self, epoch: int) -> list[Tensor]:
        """This rank's batches of an epoch."""
        if self._kept is None or self._kept[0] != epoch:
            order = self.sampler.part(epoch, 0, self.sampler.length)
            if self.group_ids is not None:
                batches = grouped_batches(order, self.group_ids, self.batch_size)
            else:
                assert self.sampler.image_keys is not None
                batches = image_batches(order, self.sampler.image_keys, self.batch_size)
            self._kept = epoch, [batches[i] for i in self._own_numbers(len(batches))]
        return self._kept[1]

    def _own_numbers(self, count: int) -> list[int]:
        """Which of `count` batches belong to this rank."""
        rank, world = self.sampler.rank, self.sampler.world
        if not self.sampler.pad:
            return list(self._whole_batches(count))
        return [i % count for i in range(rank, -(-count // world) * world, world)]

    def _whole_batches(self, count: int) -> range:
        """Contiguous numbers, those of this rank in evaluation of `count` batches."""
        rank, world = self.sampler.rank, self.sampler.world
        return range(count * rank // world, count * (rank + 1) // world)

    def set_position(self, epoch: int, start_batch: int = 0) -> None:
        """Makes the next iteration start at batch `start_batch` of `epoch`. Raises ValueError past the end."""
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start at batch {start_batch} of an epoch of {len(self)} batches")
        self.epoch, self.start_batch = epoch, start_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # Not a generator itself: a generator would read the position at its first batch, when it may have changed.
        return self._iterate(self.epoch, self.start_batch)

    def _iterate(self, epoch: int, start_batch: int) -> Iterator[list[tuple[int, int]]]:
        for number in range(start_batch, len(self)):
            batch = self.batch(epoch, number)
            seeded_by = batch if self.sampler.image_keys is None else self.sampler.image_keys[batch]
            yield [
                (i, sample_seed(self.base_seed, epoch, n))
                for i, n in zip(batch.tolist(), seeded_by.tolist(), strict=True)
            ]

    def __len__(self) -> int:
        return self._length

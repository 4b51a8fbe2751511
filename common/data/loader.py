"""From a dataset to batches: the loader of one split."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from typing import TypeVar

import torch
from torch.utils.data import DataLoader

from common.config import Config
from common.data.collate import collate
from common.data.dataset import TaskDataset
from common.data.sample import Batch
from common.data.samplers import BatchSampler, EpochSampler
from common.errors import DataError
from common.regions.lazy_features import Buffers

T = TypeVar("T")


class BatchLoader:
    """Batches of one split in a reproducible order, from any position of any epoch.

    Training pads the order so that every rank has the same number of batches; evaluation gives each sample once.
    images: samples of an image follow each other and share it, if the dataset says which they are.
    """

    def __init__(
        self,
        dataset: TaskDataset,
        batch_size: int,
        shuffle: bool = False,
        training: bool = False,
        aspect_grouping: bool = False,
        images: bool = False,
        num_workers: int = 0,
        base_seed: int = 0,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        image_keys = dataset.image_keys if images else None
        if images and training and image_keys is None:
            raise DataError("TRAIN.GROUP_PICTURES true: samples with precomputed features share no pixels")
        self.batch_sampler = BatchSampler(
            EpochSampler(
                *(len(dataset), shuffle, rank, world),
                pad=training,
                images=image_keys,
            ),
            batch_size,
            dataset.group_ids if aspect_grouping else None,
            base_seed,
        )
        self._buffers = Buffers()
        self._loader = DataLoader(
            dataset,
            batch_sampler=self.batch_sampler,
            # Of a packed store a worker sends where the features are, and `epoch` reads them.
            collate_fn=partial(collate, read=False),
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0 and training,
            worker_init_fn=_leave_signals_to_the_trainer,
            # Its own generator: making an iterator must not draw from the stream that dropout uses.
            generator=torch.Generator().manual_seed(base_seed % 2**63),
        )

    def __len__(self) -> int:
        """Batches of a full epoch on this rank."""
        return len(self.batch_sampler)

    @property
    def base_seed(self) -> int:
        """What the random draws of the samples are seeded with."""
        return self.batch_sampler.base_seed

    @base_seed.setter
    def base_seed(self, seed: int) -> None:
        self.batch_sampler.base_seed = seed

    def in_dataset_order(self, results: Sequence[T]) -> list[T]:
        """One result for each sample, in the order of the first epoch over all ranks -> in that of the dataset."""
        sampler = self.batch_sampler.sampler
        order = sampler.part(0, 0, sampler.length).argsort().tolist()
        return [results[i] for i in order]

    def epoch(self, epoch: int = 0, start_batch: int = 0) -> Iterator[Batch]:
        """An iterator over the batches of an epoch from `start_batch` on."""
        self.batch_sampler.set_position(epoch, start_batch)
        return map(self._read, iter(self._loader))

    def _read(self, batch: Batch) -> Batch:
        return batch.read(self._buffers.empty)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch()


class MultiLoader:
    """Several loaders in step: batches of the first one, each with the next batch of the others as `auxiliary`.

    The first loader is the master: its length is that of an epoch. The others go round, with an order of their own for
    each round; where they stand follows from the master's position, so the run's position is that of the master alone
    (spec 10 §12).
    """

    def __init__(self, master: BatchLoader, others: Sequence[BatchLoader]) -> None:
        self.master, self.others = master, others

    def __len__(self) -> int:
        return len(self.master)

    def in_dataset_order(self, results: Sequence[T]) -> list[T]:
        """That of the master."""
        return self.master.in_dataset_order(results)

    @property
    def dataset(self) -> TaskDataset:
        """That of the master."""
        return self.master.dataset

    @property
    def base_seed(self) -> int:
        return self.master.base_seed

    @base_seed.setter
    def base_seed(self, seed: int) -> None:
        for loader in (self.master, *self.others):
            loader.base_seed = seed

    def epoch(self, epoch: int = 0, start_batch: int = 0) -> Iterator[Batch]:
        """An iterator over the batches of an epoch from `start_batch` on."""
        # Not a generator itself: the workers of all loaders start now, side by side.
        step = epoch * len(self.master) + start_batch
        master = self.master.epoch(epoch, start_batch)
        return self._join(master, [_rounds(loader, step) for loader in self.others])

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch()

    def _join(self, master: Iterator[Batch], others: list[Iterator[Batch]]) -> Iterator[Batch]:
        for batch in master:
            yield dataclasses.replace(batch, auxiliary=tuple(next(other) for other in others))


def _rounds(loader: BatchLoader, step: int) -> Iterator[Batch]:
    """Batches of a loader without end, from the one that belongs to step number `step` of a run."""
    number, start = divmod(step, len(loader))
    for epoch in count(number):
        yield from loader.epoch(epoch, start)
        start = 0


Loader = BatchLoader | MultiLoader


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Schedulers and terminals signal the whole process group; a worker that died would keep the trainer from saving
    its position. What the trainer itself sends still ends a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # and in threads that start from here on

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def build_loader(
    dataset: TaskDataset | Sequence[TaskDataset],
    cfg: Config,
    split: str,
    base_seed: int = 0,
    rank: int = 0,
    world: int = 1,
    cuda: bool = False,
    in_order: bool = False,
) -> Loader:
    """The loader of a config for "train", "val" or "test". in_order: whatever SHUFFLE says; testing always is.

    Several datasets, each with its entry of BATCH_IMAGES, are read in step; the first is the master.
    """
    section = cfg[split.upper()]
    workers = min(cfg.NUM_WORKERS_PER_GPU, os.cpu_count() or 1)

    def build(dataset: TaskDataset, batch_size: int, training: bool, workers: int) -> BatchLoader:
        return BatchLoader(
            dataset,
            batch_size,
            shuffle=split != "test" and section.SHUFFLE and not in_order,
            training=training,
            aspect_grouping=split == "train" and section.ASPECT_GROUPING,
            images=section.get("GROUP_PICTURES", False),
            num_workers=workers,
            base_seed=base_seed,
            rank=rank,
            world=world,
            pin_memory=cuda,
        )

    if isinstance(dataset, TaskDataset):
        return build(dataset, section.BATCH_IMAGES, split == "train", workers)
    master, *others = zip(dataset, section.BATCH_IMAGES, strict=True)
    # The others are plain text, which one process reads fast enough. Every rank needs a part of them, whatever their
    # size, also in evaluation.
    return MultiLoader(build(*master, split == "train", workers), [build(*o, True, min(workers, 1)) for o in others])

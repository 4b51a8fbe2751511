"""From a dataset to batches: the loader of one split."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from itertools import count
from multiprocessing.process import BaseProcess

import torch
from torch.utils.data import DataLoader

from common.config import Config
from common.data.collate import UnreadBatch, collate_unread
from common.data.dataset import TaskDataset
from common.data.sample import Batch
from common.data.samplers import BatchSampler, EpochSampler
from common.data.workers import died_of_fault, lost_workers, start_workers, watched
from common.errors import DataError, WorkerError

log = logging.getLogger(__name__)


class BatchLoader:
    """Batches of one split in a reproducible order, from any position of any epoch.

    dataset: of the split. batch_size: samples of a batch; images of a batch in evaluation with `group_images`.
    training: pad the order, so that every rank has the same number of batches. Otherwise each sample comes once.
    aspect_grouping: batches of images of one orientation (`TaskDataset.group_ids`).
    group_images: samples of an image follow each other and share its pixels, if the dataset has `image_keys`.
    num_workers: processes that make the samples; 0 for this one. base_seed: seed of the samples' random draws.
    rank, world: this process and the number of processes that share the samples.
    pin_memory: return batches in page-locked memory.
    Raises DataError for `group_images` in training on a dataset without image keys, and what the samplers raise.

    A worker that is killed ends a single process of training with WorkerError, from `epoch`. In a group the other ranks
    wait for this one's batches, and an evaluation has no position to go on from: there this process reads the batches
    that are left. lost: the text of the error, which is logged too; "" before. A worker that crashed is a WorkerError
    in any case, because the same sample might crash this process.
    """

    def __init__(
        self,
        dataset: TaskDataset,
        batch_size: int,
        shuffle: bool = False,
        training: bool = False,
        aspect_grouping: bool = False,
        group_images: bool = False,
        num_workers: int = 0,
        base_seed: int = 0,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.lost = ""
        self._goes_on = not training or world > 1
        self._workers: list[BaseProcess] = []
        image_keys = dataset.image_keys if group_images else None
        if group_images and training and image_keys is None:
            raise DataError("TRAIN.GROUP_PICTURES true: samples with precomputed features share no pixels")
        order = EpochSampler(len(dataset), shuffle, rank, world, pad=training, image_keys=image_keys)
        group_ids = dataset.group_ids if aspect_grouping else None
        self.batch_sampler = BatchSampler(order, batch_size, group_ids, base_seed)
        self._loader = DataLoader(
            dataset,
            batch_sampler=self.batch_sampler,
            collate_fn=collate_unread,  # a worker sends where features are in a packed store; `epoch` reads them
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0 and training,
            worker_init_fn=ignore_signals_of_others,
            # Its own generator, because making an iterator draws from the default one, which dropout uses.
            generator=torch.Generator().manual_seed(base_seed % 2**63),
        )

    def __len__(self) -> int:
        """Number of batches of a full epoch on this rank."""
        return len(self.batch_sampler)

    @property
    def base_seed(self) -> int:
        """Seed of the random draws of the samples."""
        return self.batch_sampler.base_seed

    @base_seed.setter
    def base_seed(self, seed: int) -> None:
        self.batch_sampler.base_seed = seed

    def epoch(self, epoch: int = 0, start_batch: int = 0) -> Iterator[Batch]:
        """Returns an iterator over the batches of an epoch from `start_batch` on."""
        self.batch_sampler.set_position(epoch, start_batch)
        # Now, not at the first batch: the position may have changed by then.
        batches, started = start_workers(lambda: iter(self._loader))
        self._workers = started or self._workers  # workers of training live through all epochs
        return self._read(batches, epoch, start_batch)

    def _read(self, batches: Iterator[Batch | UnreadBatch], epoch: int, start_batch: int) -> Iterator[Batch]:
        workers, position = self._workers, start_batch
        with watched(workers):
            while True:
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except Exception as error:
                    lost = lost_workers(workers, error)
                    if not lost:
                        raise
                    self.lost = f"{lost}; is there enough memory for NUM_WORKERS_PER_GPU processes?"
                    if died_of_fault(workers) or not self._goes_on:
                        raise WorkerError(self.lost) from error
                    log.error("%s This process reads the batches now", self.lost)
                    break
                position += 1
                yield _complete(batch)
        self.batch_sampler.set_position(epoch, position)
        for keys in self.batch_sampler:
            yield _complete(collate_unread(self.dataset.__getitems__(keys)))

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch()


def _complete(batch: Batch | UnreadBatch) -> Batch:
    return batch.read() if isinstance(batch, UnreadBatch) else batch


class MultiLoader:
    """Several loaders in step: batches of the first one, each with the next batch of the others as `auxiliary`.

    The first loader is the master: its length is that of an epoch. The others start again at their end, with another
    order in each round. Their positions follow from the master's, so the position of a run is that of the master
    (original 4.22).
    """

    def __init__(self, master: BatchLoader, others: Sequence[BatchLoader]) -> None:
        self.master, self.others = master, others

    def __len__(self) -> int:
        return len(self.master)

    @property
    def dataset(self) -> TaskDataset:
        """The master's dataset."""
        return self.master.dataset

    @property
    def base_seed(self) -> int:
        return self.master.base_seed

    @base_seed.setter
    def base_seed(self, seed: int) -> None:
        for loader in (self.master, *self.others):
            loader.base_seed = seed

    @property
    def lost(self) -> str:
        """See BatchLoader."""
        return next((loader.lost for loader in (self.master, *self.others) if loader.lost), "")

    def epoch(self, epoch: int = 0, start_batch: int = 0) -> Iterator[Batch]:
        """Returns an iterator over the batches of an epoch from `start_batch` on."""
        # Not a generator itself, so that the workers of all loaders start now, at the same time.
        step = epoch * len(self.master) + start_batch
        master = self.master.epoch(epoch, start_batch)
        return self._join(master, [_rounds(loader, step) for loader in self.others])

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch()

    def _join(self, master: Iterator[Batch], others: list[Iterator[Batch]]) -> Iterator[Batch]:
        for batch in master:
            yield dataclasses.replace(batch, auxiliary=tuple(next(other) for other in others))


def _rounds(loader: BatchLoader, step: int) -> Iterator[Batch]:
    """Endless batches of a loader, from the one that belongs to step number `step` of a run."""
    number, start = divmod(step, len(loader))
    for epoch in count(number):
        yield from loader.epoch(epoch, start)
        start = 0


Loader = BatchLoader | MultiLoader


def ignore_signals_of_others(worker: int) -> None:
    """Makes a loader's worker ignore SIGINT, SIGHUP and SIGUSR1, and SIGTERM unless its parent process sent it.

    Schedulers and terminals signal the whole process group. If a worker ended, the trainer could not save its position.
    """
    for kind in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(kind, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # threads that start later inherit the mask

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
    """Builds the loader of a config for "train", "val" or "test".

    dataset: one, or several that are read in step, each with its entry of BATCH_IMAGES; the first is the master.
    in_order: samples in the order of the dataset, even if SHUFFLE is true. The order of "test" is always that.
    cuda: return batches in page-locked memory. base_seed, rank, world: see BatchLoader.
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
            group_images=section.get("GROUP_PICTURES", False),
            num_workers=workers,
            base_seed=base_seed,
            rank=rank,
            world=world,
            pin_memory=cuda,
        )

    if isinstance(dataset, TaskDataset):
        return build(dataset, section.BATCH_IMAGES, split == "train", workers)
    master, *others = zip(dataset, section.BATCH_IMAGES, strict=True)
    # The others are plain text, which one worker reads fast enough. They are padded in evaluation too, so that every
    # rank has a part of them, whatever their size.
    return MultiLoader(build(*master, split == "train", workers), [build(*o, True, min(workers, 1)) for o in others])

"""From a dataset to batches: the loader of one split."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import torch
from torch.utils.data import DataLoader

from common.data.collate import collate
from common.data.dataset import TaskDataset
from common.data.samplers import BatchSampler, EpochSampler


class BatchLoader:
    """Batches of one split in a reproducible order, from any position of any epoch.

    Training pads the order so that every rank has the same number of batches; evaluation gives each sample once.
    """

    def __init__(
        self,
        dataset: TaskDataset,
        batch_size: int,
        shuffle: bool = False,
        training: bool = False,
        aspect_grouping: bool = False,
        num_workers: int = 0,
        base_seed: int = 0,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.batch_sampler = BatchSampler(
            EpochSampler(len(dataset), shuffle, rank, world, pad=training),
            batch_size,
            dataset.group_ids if aspect_grouping else None,
            base_seed,
        )
        self._loader = DataLoader(
            dataset,
            batch_sampler=self.batch_sampler,
            collate_fn=collate,
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

    def epoch(self, epoch: int = 0, start_batch: int = 0) -> Any:
        """An iterator over the batches of an epoch from `start_batch` on."""
        self.batch_sampler.set_position(epoch, start_batch)
        return iter(self._loader)

    def __iter__(self) -> Any:
        return self.epoch()


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
    dataset: TaskDataset,
    cfg: Any,
    split: str,
    base_seed: int = 0,
    rank: int = 0,
    world: int = 1,
    cuda: bool = False,
    in_order: bool = False,
) -> BatchLoader:
    """The loader of a config for "train", "val" or "test". in_order: whatever SHUFFLE says; testing always is."""
    section = cfg[split.upper()]
    workers = min(cfg.NUM_WORKERS_PER_GPU, os.cpu_count() or 1)
    return BatchLoader(
        dataset,
        section.BATCH_IMAGES,
        shuffle=section.SHUFFLE and not in_order and split != "test",
        training=split == "train",
        aspect_grouping=split == "train" and section.ASPECT_GROUPING,
        num_workers=workers,
        base_seed=base_seed,
        rank=rank,
        world=world,
        pin_memory=cuda,
    )

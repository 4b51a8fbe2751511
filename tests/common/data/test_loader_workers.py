"""Worker processes and pinned memory of a config's loader."""

import os
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch.utils.data import get_worker_info

from common.config import load_config, replace
from common.data.dataset import TaskDataset
from common.data.loader import Loader, build_loader
from common.data.sample import Sample


class Workers(TaskDataset):
    """Samples whose im_info holds the worker's number and the number of workers, -1 in the main process."""

    def __len__(self) -> int:
        return 8

    def sample(self, index: int, rng: random.Random) -> Sample:
        info, empty = get_worker_info(), torch.zeros(0, dtype=torch.int64)
        seen = [-1.0, -1.0] if info is None else [float(info.id), float(info.num_workers)]
        return Sample(index, torch.tensor([*seen, 1, 1]), torch.zeros(0, 4), empty, empty)


def loader(changes: Mapping[str, Any], cuda: bool = False) -> Loader:
    settings = {"TRAIN.BATCH_IMAGES": 2, "TRAIN.ASPECT_GROUPING": False} | dict(changes)
    return build_loader(Workers(), replace(load_config("vqa"), settings), "train", cuda=cuda)


@pytest.mark.parametrize(("configured", "cores", "workers"), [(2, 4, 2), (3, 2, 2)])
def test_workers_are_as_configured_but_no_more_than_cores(monkeypatch, configured, cores, workers):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    batches = list(loader({"NUM_WORKERS_PER_GPU": configured}))
    assert {int(worker) for batch in batches for worker in batch.im_info[:, 0]} == set(range(workers))
    assert {int(count) for batch in batches for count in batch.im_info[:, 1]} == {workers}


def test_without_workers_the_main_process_reads():
    assert all((batch.im_info[:, :2] == -1).all() for batch in loader({"NUM_WORKERS_PER_GPU": 0}))


def test_batches_for_a_gpu_are_pinned():
    """Without a GPU, PyTorch warns that it cannot."""
    batches = loader({"NUM_WORKERS_PER_GPU": 0}, cuda=True)
    if torch.cuda.is_available():
        assert next(iter(batches)).im_info.is_pinned()
        return
    with pytest.warns(UserWarning, match="pin_memory"):
        next(iter(batches))


@pytest.mark.filterwarnings("error")
def test_batches_for_a_cpu_are_not_pinned():
    assert not next(iter(loader({"NUM_WORKERS_PER_GPU": 0}))).im_info.is_pinned()

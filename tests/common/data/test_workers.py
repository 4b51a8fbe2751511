"""Worker processes of a loader that end or stop."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import get_worker_info

from common import distributed
from common.data import workers
from common.data.loader import BatchLoader
from common.data.sample import Sample
from common.errors import DataError, WorkerError
from common.train.trainer import Trainer
from common.weights import checkpoint
from tests.common.test_distributed import run_on_two
from tests.common.train.toy import PREFIX, ToyDataset, toy_trainer, weights


class Fatal(ToyDataset):
    """Sample number `at` sends a signal to the worker that reads it."""

    def __init__(self, at: int, signum: int = signal.SIGKILL) -> None:
        super().__init__()
        self.at, self.signum = at, signum

    def sample(self, index: int, rng: random.Random) -> Sample:
        if index == self.at and get_worker_info() is not None:
            os.kill(os.getpid(), self.signum)
        return super().sample(index, rng)


def loader(dataset: ToyDataset, training: bool = True, count: int = 2, **options: int) -> BatchLoader:
    return BatchLoader(dataset, 2, training=training, num_workers=count, base_seed=3, **options)


def ids(batches: BatchLoader) -> list[list[int]]:
    return [list(batch.ids) for batch in batches]


def _close_files_and_wait() -> None:
    """As a process that is being killed: its files are closed a moment before it has ended."""
    os.closerange(3, 256)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_whose_files_are_closed_is_waited_for():
    worker = multiprocessing.get_context("fork").Process(target=_close_files_and_wait)
    worker.start()
    assert "was killed by SIGKILL" in workers.lost_workers([worker], ConnectionResetError())


class TestLoader:
    @pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV])
    def test_training_ends_with_the_name_of_the_worker(self, signum):
        with pytest.raises(WorkerError, match=rf"loader worker 1 of 2 \(pid \d+\) was killed by {signum.name}"):
            ids(loader(Fatal(7, signum)))

    def test_an_evaluation_goes_on_in_this_process(self, caplog):
        whole = ids(loader(ToyDataset(), training=False, count=0))
        assert ids(loader(Fatal(7), training=False)) == whole
        assert re.search(r"loader worker 1 of 2 .* was killed by SIGKILL.* This process reads the batches", caplog.text)

    def test_but_not_with_a_sample_that_crashed_a_worker(self):
        with pytest.raises(WorkerError, match="killed by SIGSEGV"):
            ids(loader(Fatal(7, signal.SIGSEGV), training=False))

    def test_a_stopped_worker_is_killed(self, monkeypatch, caplog):
        monkeypatch.setattr(workers, "POLL_SECONDS", 0.05)
        with pytest.raises(WorkerError, match="loader worker 0 of 1 .* was killed by SIGKILL"):
            ids(loader(Fatal(7, signal.SIGSTOP), count=1))
        assert re.search(r"loader worker 0 \(pid \d+\) is stopped for \S+ s: killed", caplog.text)

    def test_an_error_of_the_dataset_stays_what_it_is(self):
        class Wrong(ToyDataset):
            def sample(self, index: int, rng: random.Random) -> Sample:
                raise DataError("a bad line")

        with pytest.raises(DataError, match="a bad line"):
            ids(loader(Wrong()))

    def test_a_worker_that_ends_raises_nothing_in_the_middle_of_an_update(self):
        """The handler of SIGCHLD is the one from before."""
        before = signal.getsignal(signal.SIGCHLD)
        batches = loader(ToyDataset()).epoch()
        next(batches)
        assert signal.getsignal(signal.SIGCHLD) == before


def fatal_trainer(folder: Path, at: int, **options: int) -> Trainer:
    trainer = toy_trainer(folder, accumulate=2)
    trainer.loader = loader(Fatal(at) if at >= 0 else ToyDataset(), **options)
    return trainer


class TestTrainer:
    def test_the_position_is_saved_and_the_next_start_ends_alike(self, tmp_path):
        whole = fatal_trainer(tmp_path / "whole", at=-1)
        whole.fit()
        first = fatal_trainer(tmp_path, at=7)
        with pytest.raises(WorkerError, match="loader worker 1 of 2"):
            first.fit()
        second = fatal_trainer(tmp_path, at=-1)
        latest = checkpoint.latest_path(tmp_path, PREFIX)
        second.load_state_dict(checkpoint.load_file(latest), str(latest))
        assert second.position == first.position and first.position.batch <= 3
        second.fit()
        assert torch.equal(weights(second), weights(whole))

    def test_so_it_is_when_a_worker_of_the_validation_crashes(self, tmp_path):
        trainer = fatal_trainer(tmp_path, at=-1)
        trainer.validate = lambda should_stop: ids(loader(Fatal(7, signal.SIGSEGV), training=False)) and {}
        with pytest.raises(WorkerError, match="SIGSEGV"):
            trainer.fit()
        position = checkpoint.load_file(checkpoint.latest_path(tmp_path, PREFIX))["run"]["position"]
        assert (position["epoch"], position["batch"]) == (0, 5)


def _one_loses_a_worker(rank: int, folder: Path) -> None:
    trainer = toy_trainer(folder)
    trainer.model = distributed.wrap(trainer.model, torch.device("cpu"))
    trainer.loader = loader(Fatal(7) if rank == 1 else ToyDataset(), count=1, rank=rank, world=2)
    with pytest.raises(WorkerError, match="loader worker 0 of 1 .* was killed by SIGKILL"):
        trainer.fit()
    assert trainer.loader.lost == "" or rank == 1


def test_a_group_stops_at_the_same_batch_and_saves(tmp_path):
    run_on_two(_one_loses_a_worker, tmp_path)
    position = checkpoint.load_file(checkpoint.latest_path(tmp_path, PREFIX))["run"]["position"]
    assert position["epoch"] == 0 and 0 < position["batch"] <= 3

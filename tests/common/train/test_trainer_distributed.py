"""The training loop in two gloo processes: when they exchange gradients, and that they decide together."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from common import distributed
from common.train.signals import Stopped
from common.train.trainer import Trainer
from common.weights.checkpoint import latest_path, load_file
from tests.common.test_distributed import run_on_two
from tests.common.train.toy import (
    PREFIX,
    ToyDataset,
    toy_trainer,
    weights,
)


def wrapped(folder: Path, **settings) -> Trainer:
    trainer = toy_trainer(folder, **settings)
    trainer.model = distributed.wrap(trainer.model, torch.device("cpu"))
    return trainer


def _exchanges(rank: int, folder: Path) -> None:
    """Five batches an epoch, two for an update: the updates, the ends of epochs, and the first batch of all."""
    trainer, steps = wrapped(folder, accumulate=2), []

    def hook(state, bucket):
        steps.append(trainer.position.step + 1)
        return default_hooks.allreduce_hook(None, bucket)

    trainer.model.register_comm_hook(None, hook)
    trainer.fit()
    assert steps in ([1, 2, 4, 5, 6, 8, 10], [2, 4, 5, 6, 8, 10]), steps  # a static graph exchanges its first itself


def _signal_to_one(rank: int, folder: Path) -> None:
    trainer = wrapped(folder)
    original = trainer._micro_step

    def step(batch):
        original(batch)
        if rank == 1 and trainer.position.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer._micro_step = step
    with pytest.raises(Stopped) as stopped:
        trainer.fit()
    assert stopped.value.signum == signal.SIGTERM and trainer.position.step == 3
    distributed.barrier()
    saved = load_file(latest_path(folder, PREFIX))
    assert saved["run"]["position"]["step"] == 3
    assert saved["state_dict"].keys() == {"linear.weight", "linear.bias"}  # without the wrapper of two processes


def _nan_on_one(rank: int, folder: Path) -> None:
    """Its gradient is everywhere after the exchange, its loss on one rank alone; without exchange too."""
    bad = ToyDataset(bad=(5,) if rank == 1 else ())
    for accumulate in (1, 2):
        trainer = wrapped(folder / str(accumulate), dataset=bad, nonfinite="skip", accumulate=accumulate)
        trainer.fit()
        skipped = distributed.all_reduce_max(trainer.position.skipped)
        assert trainer.position.skipped == skipped > 0
        both = distributed.gather_objects(weights(trainer))
        assert both is None or (torch.equal(*both) and both[0].isfinite().all())
    for late in (False, True):
        with pytest.raises(FloatingPointError, match="not finite"):
            wrapped(folder / "stop", dataset=bad, adamw=True, read_late=late).fit()


def _signal_read_late(rank: int, folder: Path) -> None:
    """A signal to one rank stops both at the same batch, at most one update later than without."""
    trainer = wrapped(folder, adamw=True, read_late=True, log_every=100)
    original = trainer._micro_step

    def step(batch):
        original(batch)
        if rank == 1 and trainer.position.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer._micro_step = step
    with pytest.raises(Stopped):
        trainer.fit()
    steps = distributed.gather_objects(trainer.position.step)
    assert steps in (None, [3, 3], [4, 4])


@pytest.mark.parametrize("function", [_exchanges, _signal_to_one, _signal_read_late, _nan_on_one])
def test_two_processes(function, tmp_path):
    run_on_two(function, tmp_path)

"""One process with a batch of 2b, two with b each, and one that takes two of b in turn: the same five updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pretrain.losses
import pretrain.masking
from common.config import load_config
from common.data.samplers import EpochSampler
from common.task import load_task
from common.train.run import run_training
from common.weights import checkpoint
from tests.common.test_distributed import run_on_two
from tests.pretrain.world import tiny_pretrain
from tests.pretrain.world import write_world as write_captions
from tests.tiny import tiny_vqa, write_settings

UPDATES = 5
RTOL, ATOL = 1e-4, 2e-6  # sums are in another order
TRAINING_SAMPLES = (30, 12)  # of the two worlds


def vqa(world: Path, folder: Path) -> dict[str, Any]:
    return tiny_vqa(world, folder / "out")


def captions(world: Path, folder: Path) -> dict[str, Any]:
    settings = tiny_pretrain(write_captions(folder / "captions"), folder / "out")
    settings["NETWORK"] |= {"MLM_LOSS_NORM_IN_BATCH_FIRST": True, "MVRC_LOSS_NORM_IN_BATCH_FIRST": True}
    return settings


def train(rank: int, name: str, path: Path, changes: dict[str, Any]) -> None:
    task = load_task(name)
    build_model = type(task).build_model

    def without_dropout(self: Any, cfg: Any) -> nn.Module:
        model = build_model(self, cfg)
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(task), "build_model", without_dropout)
        # A mean over all targets of a batch is no mean of two means where these have other numbers of targets: so a
        # sample is averaged first, each has targets, and the constant that is added to counts is 0.
        patch.setattr(pretrain.masking, "MASKED", 1.0)
        patch.setattr(pretrain.losses, "EPS", 0.0)
        run_training(task, load_config(name, path, changes), path)


def trained(path: Path, name: str, title: str, batch: Any, gpus: str = "0", processes: int = 1) -> dict[str, Tensor]:
    """Weights after the updates."""
    out = path.parent / title
    changes = {"OUTPUT_PATH": str(out), "GPUS": gpus, "TRAIN.BATCH_IMAGES": batch}
    if processes == 1:
        train(0, name, path, changes)
    else:
        run_on_two(train, name, path, changes)
    state = checkpoint.load_file(next(out.rglob("tiny-latest.model")))
    assert state["run"]["position"]["updates"] == UPDATES
    return state["state_dict"]


def dealt_as_to_two(monkeypatch, sizes: list[int]) -> None:
    """One process gets its samples in the order in which two of them get theirs, batch by batch.

    A rank's samples are contiguous in the order of an epoch (original 4.8). sizes: of the batches of each of the two.
    """
    original = EpochSampler.part

    def part(self: EpochSampler, epoch: int, start: int, stop: int) -> Tensor:
        whole = original(self, epoch, 0, self.length)
        size = sizes[0] if self.length in TRAINING_SAMPLES else sizes[-1]
        if self.length % (2 * size) == 0:  # validation sets are no matter
            whole = whole.reshape(2, -1, size).transpose(0, 1).flatten()
        return whole[torch.arange(start, stop) % self.length]

    monkeypatch.setattr(EpochSampler, "part", part)


@pytest.mark.parametrize(
    ("name", "settings", "whole", "half"),
    [("vqa", vqa, 10, 5), ("pretrain", captions, [6, 2], [3, 1])],
    ids=["vqa", "pretrain"],
)
def test_the_same_updates(tiny_world, tmp_path, monkeypatch, name, settings, whole, half):
    content = settings(tiny_world, tmp_path)
    content["NETWORK"]["VLBERT"] |= {"attention_probs_dropout_prob": 0.0}  # not a module
    # One rate for all: it is scaled by the batch of an update, which is the same. SGD, for Adam makes steps of the
    # same size of gradients that are nothing but rounding.
    content["TRAIN"] |= {
        "OPTIMIZER": "SGD",
        "LR": 0.01,
        "GRAD_ACCUMULATE_STEPS": 1,
        "SHUFFLE": True,
        "MAX_STEPS": UPDATES,
        "ASPECT_GROUPING": False,
        "END_EPOCH": 20,
        "WARMUP_STEPS": 1,
    }
    content |= {"NUM_WORKERS_PER_GPU": 0, "VAL_FREQUENT": 100}
    path = write_settings(content, tmp_path / "tiny.yaml")

    two = trained(path, name, "two", half, processes=2)
    dealt_as_to_two(monkeypatch, half if isinstance(half, list) else [half])
    for other in (trained(path, name, "one", whole), trained(path, name, "turns", half, gpus="0,1")):
        for key, value in two.items():
            torch.testing.assert_close(other[key], value, rtol=RTOL, atol=ATOL, msg=lambda text, k=key: f"{k}: {text}")

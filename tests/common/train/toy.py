"""A run small enough to follow by hand: ten samples, one linear layer."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.data.dataset import TaskDataset
from common.data.loader import BatchLoader
from common.data.sample import Batch, ModelOutput, Sample
from common.metrics import Mean, MetricGroup
from common.precision import Precision
from common.train.adamw import AdamW
from common.train.schedules import Schedule
from common.train.settings import TrainerSettings
from common.train.trainer import Trainer

PREFIX = "toy"
LR = 0.1


class ToyDataset(TaskDataset):
    """Four numbers in `im_info` and a target: a function of the index, and `noise` of the sample's generator."""

    def __init__(self, length: int = 10, noise: float = 0.0, bad: tuple[int, ...] = ()) -> None:
        self.length, self.noise, self.bad = length, noise, bad

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, rng: random.Random) -> Sample:
        x = torch.tensor([1.0, index / 10, (index % 3) / 2, (index % 2) * 1.0])
        y = 2 * x[1] - x[2] + self.noise * rng.random()
        return Sample(
            id=index,
            im_info=x,
            boxes=torch.zeros(1, 4),
            text_ids=torch.tensor([index]),
            segment_ids=torch.zeros(1, dtype=torch.int64),
            targets={"y": y * float("nan") if index in self.bad else y},
        )


class ToyModel(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, batch: Batch) -> ModelOutput:
        score = self.linear(self.dropout(batch.im_info)).squeeze(-1)
        loss = (score - batch.targets["y"]).float().pow(2).mean()
        return ModelOutput({"score": score}, loss, {"square": loss})


class Lines:
    """Stands for a RunWriter and keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, kind: str, step: int, scalars: Mapping[str, float], **fields: Any) -> None:
        self.lines.append({"kind": kind, "step": step, **fields, **scalars})

    def column(self, name: str) -> list[Any]:
        return [line[name] for line in self.lines if name in line]


def toy_trainer(
    folder: Path,
    dataset: ToyDataset | None = None,
    batch_size: int = 2,
    shuffle: bool = False,
    dropout: float = 0.0,
    schedule: Schedule = lambda step: 1.0,
    momentum: float = 0.9,
    precision: Precision | None = None,
    adamw: bool = False,
    validate: Callable[[Callable[[], bool]], dict[str, float]] | None = None,
    base_seed: int = 3,
    read_late: bool = False,
    **settings: Any,
) -> Trainer:
    """A trainer on five batches an epoch; torch is seeded, so two calls give the same run."""
    torch.manual_seed(0)
    model = ToyModel(dropout)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=momentum)
    if adamw:
        optimizer = AdamW(model.parameters(), lr=LR)
    for group in optimizer.param_groups:
        group["initial_lr"] = LR
    return Trainer(
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        precision=precision or Precision("fp32", "cpu"),
        loader=BatchLoader(dataset or ToyDataset(), batch_size, shuffle=shuffle, training=True, base_seed=base_seed),
        metrics=MetricGroup([Mean("square", "Square")]),
        device=torch.device("cpu"),
        settings=TrainerSettings(**{"end_epoch": 2, "log_every": 1, "main_metric": "Acc"} | settings),
        directory=folder,
        prefix=PREFIX,
        validate=validate,
        writer=Lines(),  # type: ignore[arg-type]
        read_late=read_late,
    )


def weights(trainer: Trainer) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([p.detach().flatten() for p in trainer.module.parameters()]).clone()

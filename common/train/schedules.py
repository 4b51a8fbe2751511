"""Learning-rate schedules: the factor on the initial learning rate as a function of the optimizer step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from common.config import Config
from common.errors import ConfigError
from common.train.plan import RunPlan

Schedule = Callable[[int], float]  # optimizer step, 1 for the first update of a fresh run -> factor on initial_lr


@dataclass(frozen=True)
class LinearSchedule:
    """Linear warm-up from 0, then linear decay to 0 at total_steps ("triangle")."""

    warmup_steps: int
    total_steps: int

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return step / max(1, self.warmup_steps)
        return max(0.0, (self.total_steps - step) / max(1, self.total_steps - self.warmup_steps))


@dataclass(frozen=True)
class MultiStepSchedule:
    """Times gamma at each milestone ("step").

    The first warmup_steps steps rise linearly from warmup_factor to 1, or stay at it for the method "constant".
    Raises ConfigError for unsorted milestones and unknown methods.
    """

    milestones: tuple[int, ...]
    gamma: float
    warmup_steps: int = 0
    warmup_factor: float = 1 / 3
    warmup_method: str = "linear"

    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(self.milestones):
            raise ConfigError(f"the milestones of TRAIN.LR_STEP must be sorted, not {self.milestones}")
        if self.warmup_method not in ("constant", "linear"):
            raise ConfigError(f"TRAIN.WARMUP_METHOD {self.warmup_method!r} is not one of constant, linear")

    def __call__(self, step: int) -> float:
        return self._warmup(step) * self.gamma ** bisect_right(self.milestones, step)

    def _warmup(self, step: int) -> float:
        if step >= self.warmup_steps:
            return 1.0
        if self.warmup_method == "constant":
            return self.warmup_factor
        done = step / self.warmup_steps
        return self.warmup_factor * (1 - done) + done


class PlateauSchedule:
    """Times `factor` when the main metric stops rising. `observe` must be called after each validation.

    The scheduler of PyTorch runs on an optimizer of its own whose learning rate is the factor. So all schedules are
    applied in the same way, and the state of this one can be saved.
    """

    def __init__(self, factor: float) -> None:
        self._factor = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
        # eps=0: a change of the factor is never too small to apply.
        self._plateau = ReduceLROnPlateau(
            self._factor, mode="max", factor=factor, patience=1, threshold=1e-4, cooldown=2, min_lr=0, eps=0
        )

    def __call__(self, step: int) -> float:
        return self._factor.param_groups[0]["lr"]

    def observe(self, value: float) -> None:
        """Record the main metric of a validation."""
        self._plateau.step(value)

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self(0), "plateau": self._plateau.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._factor.param_groups[0]["lr"] = state["factor"]
        self._plateau.load_state_dict(state["plateau"])


def build_schedule(cfg_train: Config, plan: RunPlan) -> Schedule:
    """The schedule of the TRAIN section, in optimizer steps. Raises ConfigError for an unknown TRAIN.LR_SCHEDULE."""
    warmup_steps = cfg_train.WARMUP_STEPS if cfg_train.WARMUP else 0
    if cfg_train.LR_SCHEDULE == "triangle":
        return LinearSchedule(warmup_steps, plan.total_updates)
    if cfg_train.LR_SCHEDULE == "step":
        return MultiStepSchedule(
            milestones=tuple(plan.updates_before(epoch) for epoch in cfg_train.LR_STEP),
            gamma=cfg_train.LR_FACTOR,
            warmup_steps=warmup_steps,
            warmup_factor=cfg_train.WARMUP_FACTOR,
            warmup_method=cfg_train.WARMUP_METHOD,
        )
    if cfg_train.LR_SCHEDULE == "plateau":
        return PlateauSchedule(cfg_train.LR_FACTOR)
    raise ConfigError(f"TRAIN.LR_SCHEDULE {cfg_train.LR_SCHEDULE!r} is not one of triangle, step, plateau")

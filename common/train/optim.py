"""Optimizers, parameter groups, learning rates as functions of the optimizer step, and the numbers of a run."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from common.config import Config
from common.errors import ConfigError

logger = logging.getLogger(__name__)

CLIP_EPS = 1e-6  # as torch.nn.utils.clip_grad_norm_
NO_DECAY = 2.0**-25  # p - decay * p rounds to p in float32 for any smaller decay: a pass over all weights less

Schedule = Callable[[int], float]  # optimizer step, 1 for the first update of a fresh run -> factor on initial_lr


class AdamW(Optimizer):
    """Adam with decoupled weight decay, in the order of the original's BERT optimizer.

    It differs from `torch.optim.AdamW` twice: eps is added to the root before its bias is corrected, and the decay
    `p -= lr * weight_decay * p` is applied to the already updated weight. State dicts interchange with the original's.
    Raises RuntimeError on sparse gradients.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
    ) -> None:
        if lr < 0 or eps < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"AdamW wants lr >= 0, eps >= 0 and betas in [0, 1), not lr={lr}, eps={eps}, betas={betas}"
            )
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
        super().__init__(params, defaults)
        self.divisor: Tensor | None = None  # of the gradients in the next step, which leaves them divided

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for (step, *_), params in self._by_step(group["params"]).items():
                self._update(params, step, group)
        self.divisor = None
        return loss

    def _by_step(self, params: list[Tensor]) -> dict[tuple, list[Tensor]]:
        """Parameters that can share one fused update: same step count, device and dtype. Counts this step."""
        buckets: dict[tuple, list[Tensor]] = defaultdict(list)
        for p in params:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise RuntimeError("AdamW does not support sparse gradients")
            state = self.state[p]
            if not state:
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
            state["step"] += 1
            buckets[(state["step"], p.device, p.dtype)].append(p)
        return buckets

    def _update(self, params: list[Tensor], step: int, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        grads = [p.grad for p in params if p.grad is not None]
        mean = [self.state[p]["exp_avg"] for p in params]
        square = [self.state[p]["exp_avg_sq"] for p in params]
        # PyTorch's kernel computes  lr / (1 - beta1^t) * mean / (sqrt(square) / sqrt(1 - beta2^t) + eps)  in one pass:
        # with other lr and eps it is ours, where eps is added before the root is corrected.
        root_correction = (1 - beta2**step) ** 0.5
        lr, eps = group["lr"], group["eps"] / root_correction
        if not group["correct_bias"]:
            lr *= (1 - beta1**step) / root_correction
        torch._fused_adam_(
            params,
            grads,
            mean,
            square,
            [],
            [torch.tensor(float(step), device=params[0].device)] * len(params),
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=eps,
            amsgrad=False,
            maximize=False,
            grad_scale=None if self.divisor is None else self.divisor.float().to(params[0].device),
        )
        decay = group["lr"] * group["weight_decay"]
        if decay >= NO_DECAY or (decay > 0 and params[0].dtype != torch.float32):
            torch._foreach_add_(params, params, alpha=-decay)
        torch.autograd.graph.increment_version(params)  # the kernel does not say that it changed them


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], lr: float, lr_mult: Sequence[tuple[str, float]] = ()
) -> list[dict[str, Any]]:
    """One group for each (substring of the name, multiplier of lr), then one of all other parameters, with lr.

    Order within a group is that of registration; a shared parameter counts once, under its first name. Frozen
    parameters are members too. Raises ValueError when a name contains two of the substrings.
    """
    groups: list[dict[str, Any]] = [{"params": [], "lr": lr * mult} for _, mult in lr_mult]
    groups.append({"params": [], "lr": lr})
    seen: set[int] = set()
    for name, parameter in named_parameters:
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        matches = [i for i, (substring, _) in enumerate(lr_mult) if substring in name]
        if len(matches) > 1:
            raise ConfigError(
                f"TRAIN.LR_MULT is ambiguous: parameter {name!r} contains {[lr_mult[i][0] for i in matches]}; "
                "make the substrings longer"
            )
        groups[matches[0] if matches else -1]["params"].append(parameter)
    for (substring, _), group in zip(lr_mult, groups, strict=False):
        if not group["params"]:
            logger.warning("TRAIN.LR_MULT: no parameter name contains %r", substring)
    return groups


def build_optimizer(cfg_train: Any, named_parameters: Iterable[tuple[str, nn.Parameter]], base_lr: float) -> Optimizer:
    """The optimizer of the TRAIN section; weight decay applies to every parameter. Each group gets `initial_lr`."""
    groups = parameter_groups(named_parameters, base_lr, [(s, m) for s, m in cfg_train.LR_MULT])
    optimizer: Optimizer
    if cfg_train.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(groups, lr=base_lr, momentum=cfg_train.MOMENTUM, weight_decay=cfg_train.WD)
    elif cfg_train.OPTIMIZER == "Adam":
        optimizer = torch.optim.Adam(groups, lr=base_lr, weight_decay=cfg_train.WD)
    elif cfg_train.OPTIMIZER == "AdamW":
        optimizer = AdamW(groups, lr=base_lr, weight_decay=cfg_train.WD)
    else:
        raise ConfigError(f"TRAIN.OPTIMIZER {cfg_train.OPTIMIZER!r} is not one of SGD, Adam, AdamW")
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


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
    """Times gamma at each milestone ("step"), after a warm-up from warmup_factor (or constant at it)."""

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
    """Times `factor` when the host metric stops rising; `observe` is called after each validation.

    The torch scheduler runs on an optimizer of its own whose learning rate is the factor, so that all schedules are
    applied in the same way and this one can be saved too.
    """

    def __init__(self, factor: float) -> None:
        self._factor = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
        # eps is about absolute learning rates, here they are factors.
        self._plateau = ReduceLROnPlateau(
            self._factor, mode="max", factor=factor, patience=1, threshold=1e-4, cooldown=2, min_lr=0, eps=0
        )

    def __call__(self, step: int) -> float:
        return self._factor.param_groups[0]["lr"]

    def observe(self, value: float) -> None:
        """Take the value of the host metric of a validation."""
        self._plateau.step(value)

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self(0), "plateau": self._plateau.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._factor.param_groups[0]["lr"] = state["factor"]
        self._plateau.load_state_dict(state["plateau"])


def build_schedule(cfg_train: Any, plan: RunPlan) -> Schedule:
    """The schedule of the TRAIN section, in optimizer steps."""
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


def apply_lr(optimizer: Optimizer, factor: float) -> None:
    """Set the learning rate of every group to factor * initial_lr."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float, optimizer: Optimizer | None = None) -> Tensor:
    """Scale the gradients down to a global L2 norm of max_norm. Returns the norm before, without waiting for it.

    optimizer: whose step comes next. An AdamW scales in that step, which saves a pass over all gradients.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = _global_norm(grads)
    divisor = None if math.isinf(max_norm) or not grads else ((norm + CLIP_EPS) / max_norm).clamp(min=1.0)
    if isinstance(optimizer, AdamW):
        optimizer.divisor = divisor
    elif divisor is not None:
        torch._foreach_div_(grads, divisor)
    return norm


def _global_norm(grads: Sequence[Tensor]) -> Tensor:
    if any(grad.device.type != "cpu" for grad in grads):
        return nn.utils.get_total_norm(grads, foreach=True)
    # Twice as fast as PyTorch's norm, which takes one thread, and closer: its sums are in blocks.
    flat = [grad.detach().reshape(-1) for grad in grads]
    return torch.stack([torch.dot(x, x).float() for x in flat]).sum().sqrt() if flat else torch.tensor(0.0)


@dataclass(frozen=True)
class RunPlan:
    """What a run derives from its config and from how many processes it has (spec 03 §3).

    replicas: devices that the batch rule counts: processes, or the entries of GPUS in a single process, which then
        takes their micro-batches one after the other. processes: how many there are.
    samples: per replica and micro-batch, summed over datasets. lr: TRAIN.LR, which is per sample.
    batches_per_epoch: of one process.
    """

    replicas: int
    processes: int
    samples: int
    accumulation: int
    lr: float
    batches_per_epoch: int
    epochs: int

    @classmethod
    def from_config(cls, cfg: Config, processes: int, batches_per_epoch: int) -> RunPlan:
        """processes: `distributed.world_size()`. batches_per_epoch: length of one process's training loader."""
        images = cfg.TRAIN.BATCH_IMAGES
        named = len([gpu for gpu in str(cfg.GPUS).split(",") if gpu.strip()])
        return cls(
            replicas=processes if processes > 1 else max(1, named),
            processes=processes,
            samples=images if isinstance(images, int) else sum(images),
            accumulation=max(1, cfg.TRAIN.GRAD_ACCUMULATE_STEPS),
            lr=cfg.TRAIN.LR,
            batches_per_epoch=batches_per_epoch,
            epochs=cfg.TRAIN.END_EPOCH,
        )

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one process for an optimizer step."""
        return self.accumulation * self.replicas // self.processes

    @property
    def effective_batch(self) -> int:
        """Samples of one optimizer step."""
        return self.replicas * self.samples * self.accumulation

    @property
    def base_lr(self) -> float:
        return self.lr * self.effective_batch

    @property
    def total_updates(self) -> int:
        return self.updates_before(self.epochs)

    def updates_before(self, epoch: float) -> int:
        """Optimizer steps done when `epoch` begins."""
        return int(epoch * self.batches_per_epoch / self.micro_batches)

    def describe(self) -> str:
        """One line for the log."""
        line = (
            f"{self.replicas} replicas x {self.samples} samples x {self.accumulation} accumulated = "
            f"effective batch {self.effective_batch}; learning rate {self.lr:g} x {self.effective_batch} = "
            f"{self.base_lr:g}; {self.epochs} epochs x {self.batches_per_epoch} batches = {self.total_updates} updates"
        )
        if self.replicas > self.processes:
            line += (
                f". GPUS names {self.replicas} devices and this is one process on one device: it takes "
                f"{self.micro_batches} micro-batches for an update, which is the same optimisation"
            )
        return line

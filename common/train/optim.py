"""From the TRAIN section to an optimizer: parameter groups, learning rates, clipping of the gradient norm."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common import distributed
from common.config import Config
from common.errors import ConfigError
from common.train.adamw import AdamW

log = logging.getLogger(__name__)

CLIP_EPS = 1e-6  # as torch.nn.utils.clip_grad_norm_


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], lr: float, lr_mult: Sequence[tuple[str, float]] = ()
) -> list[dict[str, Any]]:
    """One group for each (substring of the name, multiplier of lr), then one of all other parameters, with lr.

    Within a group, parameters are in the order of registration. A shared parameter counts once, under its first name.
    Frozen parameters are members too. Raises ConfigError when a name contains two of the substrings.
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
            log.warning("TRAIN.LR_MULT: no parameter name contains %r", substring)
    return groups


def build_optimizer(
    cfg_train: Config,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    base_lr: float,
    fused: bool | None = None,
) -> Optimizer:
    """The optimizer of the TRAIN section. Weight decay applies to every parameter. Each group has `initial_lr`.

    fused: of AdamW. Raises ConfigError for an unknown TRAIN.OPTIMIZER.
    """
    groups = parameter_groups(named_parameters, base_lr, [(s, m) for s, m in cfg_train.LR_MULT])
    optimizer: Optimizer
    if cfg_train.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(
            groups,
            lr=base_lr,
            momentum=cfg_train.MOMENTUM,
            weight_decay=cfg_train.WD,
            fused=_fuses_sgd(cfg_train, groups),
        )
    elif cfg_train.OPTIMIZER == "Adam":
        optimizer = torch.optim.Adam(groups, lr=base_lr, weight_decay=cfg_train.WD)
    elif cfg_train.OPTIMIZER == "AdamW":
        optimizer = AdamW(groups, lr=base_lr, weight_decay=cfg_train.WD, fused=fused)
    else:
        raise ConfigError(f"TRAIN.OPTIMIZER {cfg_train.OPTIMIZER!r} is not one of SGD, Adam, AdamW")
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _fuses_sgd(cfg_train: Config, groups: Sequence[dict[str, Any]]) -> bool | None:
    """True where SGD is one kernel, which passes over the weights once: on GPUs. None for PyTorch's choice.

    Not in fp16: after an overflow the kernel leaves the step out on the device, and the host does not learn of it.
    """
    if any(p.device.type != "cuda" for group in groups for p in group["params"]):
        return None
    fp16 = cfg_train.PRECISION == "fp16" or (cfg_train.FP16 and not cfg_train.PRECISION)
    return None if fp16 else True


def apply_lr(optimizer: Optimizer, factor: float) -> None:
    """Set the learning rate of every group to factor * initial_lr."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


# ---------------------------------------------------------------------------------------------- gradient norm


class Clipping(NamedTuple):
    """norm: global L2 norm of the gradients, a scalar. divisor: a scalar >= 1 that brings it down to the limit; None
    without a limit or without gradients."""

    norm: Tensor
    divisor: Tensor | None


def measure_clipping(parameters: Iterable[Tensor], max_norm: float, fused: bool = True) -> Clipping:
    """The global gradient norm and the divisor that clips it to max_norm. Does not wait for the device.

    max_norm: math.inf for no limit. fused: see `gradient_norm`. Every rank must call it where FSDP sharded parameters.
    """
    parameters = list(parameters)
    grads = gradients(parameters)
    norm = gradient_norm(grads, fused)
    if any(distributed.is_sharded(p) for p in parameters):
        norm = distributed.all_reduce_sum(norm.square()).sqrt()
    limited = grads and not math.isinf(max_norm)
    return Clipping(norm, ((norm + CLIP_EPS) / max_norm).clamp(min=1.0) if limited else None)


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float, fused: bool = True) -> Tensor:
    """Divide the gradients, in place, so that their global L2 norm is at most max_norm. Returns the norm before."""
    parameters = list(parameters)
    norm, divisor = measure_clipping(parameters, max_norm, fused)
    if divisor is not None:
        divide_gradients(parameters, divisor)
    return norm


def gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Those that are there; of sharded ones the share of this rank."""
    return [distributed.local_share(p.grad) for p in parameters if p.grad is not None]


def divide_gradients(parameters: Iterable[Tensor], divisor: Tensor) -> None:
    torch._foreach_div_(gradients(parameters), divisor)


def gradient_norm(grads: Sequence[Tensor], fused: bool = True) -> Tensor:
    """Global L2 norm, a scalar. fused: on CPUs by dot products, False by PyTorch's `get_total_norm`."""
    if fused and grads and all(grad.device.type == "cpu" for grad in grads):
        return _norm_by_dot_products(grads)
    return nn.utils.get_total_norm(grads, foreach=True)


def _norm_by_dot_products(grads: Sequence[Tensor]) -> Tensor:
    """Twice as fast on CPUs as PyTorch's norm, which takes one thread, and closer: its sums are in blocks."""
    flat = [grad.detach().reshape(-1) for grad in grads]
    return torch.stack([torch.dot(x, x).float() for x in flat]).sum().sqrt()

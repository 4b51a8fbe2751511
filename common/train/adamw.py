"""AdamW with the update rule of the original: as a formula, and by PyTorch's Adam kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from common.distributed import local_share

FUSED_DEVICES = ("cpu", "cuda")
# For any smaller decay, p - decay * p rounds to p in float32, and the pass over the weights is skipped.
NO_DECAY = 2.0**-25

Group = dict[str, Any]


class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    It differs from `torch.optim.AdamW` in two places: eps is added to the root before its bias is corrected, and the
    decay `p -= lr * weight_decay * p` is applied to the already updated weight. State dicts interchange with those of
    the original.

    fused: True updates all parameters of a group in one call of PyTorch's Adam kernel, False updates them one by one
    with the formula, None takes the kernel where this PyTorch has it. Both give the same weights up to rounding.
    Of parameters that FSDP sharded, each rank updates its share.
    `step` raises RuntimeError for sparse gradients.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        fused: bool | None = None,
    ) -> None:
        if lr < 0 or eps < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"AdamW: expected lr >= 0, eps >= 0, betas in [0, 1); got lr={lr}, eps={eps}, betas={betas}"
            )
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
        super().__init__(params, defaults)
        self.fused = hasattr(torch, "_fused_adam_") if fused is None else fused

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float] | None = None,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> float | None:
        """One update. grad_scale: a scalar by which all gradients are divided first, in place.

        found_inf: float32 scalar. Where it is 1, the device leaves weights and moments as they are, and the host need
        not wait to read it. The step is counted all the same. Raises ValueError without the kernel for all parameters.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                self._count_step(p)
            for (step, device, _), alike in self._alike(params).items():
                if self.fused and device.type in FUSED_DEVICES:
                    self._fused_update(alike, step, group, grad_scale, found_inf)
                elif found_inf is not None:
                    raise ValueError(f"AdamW: found_inf needs fused=True and one of {FUSED_DEVICES}, not {device}")
                else:
                    for p in alike:
                        self._plain_update(p, step, group, grad_scale)
        return loss

    def _count_step(self, p: Tensor) -> None:
        if p.grad is not None and p.grad.is_sparse:
            raise RuntimeError("AdamW does not support sparse gradients")
        state = self.state[p]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        state["step"] += 1

    def _alike(self, params: Sequence[Tensor]) -> dict[tuple[int, torch.device, torch.dtype], list[Tensor]]:
        """Parameters by step count, device and dtype: those that one call of the kernel can update."""
        buckets = defaultdict(list)
        for p in params:
            buckets[self.state[p]["step"], p.device, p.dtype].append(p)
        return buckets

    def _plain_update(self, p: Tensor, step: int, group: Group, grad_scale: Tensor | None) -> None:
        """The update rule."""
        if p.grad is None:
            return
        state, grad = self.state[p], local_share(p.grad)
        p, mean, square = local_share(p), local_share(state["exp_avg"]), local_share(state["exp_avg_sq"])
        beta1, beta2 = group["betas"]
        if grad_scale is not None:
            grad.div_(grad_scale)
        mean.mul_(beta1).add_(grad, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        step_size = group["lr"]
        if group["correct_bias"]:
            step_size *= (1 - beta2**step) ** 0.5 / (1 - beta1**step)
        p.addcdiv_(mean, square.sqrt().add_(group["eps"]), value=-step_size)
        if group["weight_decay"] > 0:
            p.add_(p, alpha=-group["lr"] * group["weight_decay"])

    def _fused_update(
        self, params: list[Tensor], step: int, group: Group, grad_scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        """The update rule by `torch._fused_adam_`, which also divides the gradients by grad_scale.

        The kernel computes  lr / (1 - beta1^t) * mean / (sqrt(square) / sqrt(1 - beta2^t) + eps).  With lr and eps
        changed as below, this is the update rule, where eps is added before the root is corrected.
        """
        beta1, beta2 = group["betas"]
        root_correction = (1 - beta2**step) ** 0.5
        lr, eps = group["lr"], group["eps"] / root_correction
        if not group["correct_bias"]:
            lr *= (1 - beta1**step) / root_correction
        grads = [local_share(p.grad) for p in params if p.grad is not None]
        means = [local_share(self.state[p]["exp_avg"]) for p in params]
        squares = [local_share(self.state[p]["exp_avg_sq"]) for p in params]
        params = [local_share(p) for p in params]
        device = params[0].device
        torch._fused_adam_(
            params,
            grads,
            means,
            squares,
            [],
            [torch.full((), float(step), device=device)] * len(params),  # torch.tensor would wait for a GPU
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=eps,
            amsgrad=False,
            maximize=False,
            grad_scale=None if grad_scale is None else grad_scale.float().to(device),
            found_inf=found_inf,
        )
        decay = group["lr"] * group["weight_decay"]
        if decay >= NO_DECAY or (decay > 0 and params[0].dtype != torch.float32):
            if found_inf is None:
                torch._foreach_add_(params, params, alpha=-decay)
            else:
                torch._foreach_add_(params, torch._foreach_mul(params, (1.0 - found_inf) * -decay))
        torch.autograd.graph.increment_version(params)  # the kernel changes them without counting a version

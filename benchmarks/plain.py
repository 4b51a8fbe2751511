"""What the original computes, written plainly: the baseline of every ratio.

The model is built with NETWORK.FAST_PATH false: padded batches through separate projections and an explicit softmax,
batch norms as layers of their own, word logits at every position, in float32. Clipping and the optimizer treat one
parameter at a time. Baseline and ours do the same work on the same weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from common.train.optim import AdamW

PLAIN_MODEL = ("NETWORK.FAST_PATH=false",)  # overrides of a config


class PlainAdamW(AdamW):
    """The same update, one parameter at a time."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    for (step, *_), params in self._by_step([p]).items():
                        self._one(params[0], step, group)

    def _one(self, p: Tensor, step: int, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.mul_(beta1).add_(p.grad, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
        size = group["lr"]
        if group["correct_bias"]:
            size *= (1 - beta2**step) ** 0.5 / (1 - beta1**step)
        p.addcdiv_(mean, square.sqrt().add_(group["eps"]), value=-size)
        if group["weight_decay"] > 0:
            p.add_(p, alpha=-group["lr"] * group["weight_decay"])


def plain_clip(model: nn.Module, norm: float) -> None:
    """Clipping by a loop over parameters, with a number on the host for each."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    total = sum(float(g.norm()) ** 2 for g in grads) ** 0.5
    if total > norm:
        for g in grads:
            g.mul_(norm / (total + 1e-6))

"""A TRAIN section and parameters, small enough to follow by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


def train_section(**changes: Any) -> SimpleNamespace:
    values = {
        "LR": 1e-3,
        "LR_MULT": [],
        "OPTIMIZER": "AdamW",
        "WD": 0.01,
        "MOMENTUM": 0.9,
        "BATCH_IMAGES": 4,
        "GRAD_ACCUMULATE_STEPS": 1,
        "END_EPOCH": 2,
        "LR_SCHEDULE": "triangle",
        "LR_FACTOR": 0.1,
        "LR_STEP": (),
        "WARMUP": True,
        "WARMUP_STEPS": 4,
        "WARMUP_FACTOR": 0.0,
        "WARMUP_METHOD": "linear",
    }
    return SimpleNamespace(**{**values, **changes})


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def with_grad(param: nn.Parameter, *grad: float) -> nn.Parameter:
    param.grad = torch.tensor(grad, dtype=param.dtype)
    return param

"""Activation checkpointing: less memory for more time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def call(function: Callable[..., T], *args: object, again: bool) -> T:
    """`function(*args)`. again: the backward pass computes its activations once more instead of keeping them."""
    if again and torch.is_grad_enabled():
        return checkpoint(function, *args, use_reentrant=False)
    return function(*args)

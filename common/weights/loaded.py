"""A trained model with its device and precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common.precision import Precision


@dataclass
class Loaded:
    """A trained model in eval mode on `device`. source: the checkpoint file."""

    model: nn.Module
    device: torch.device
    precision: Precision
    source: Path

"""A trained model with its device and precision."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.config import Config
from common.precision import Precision


@dataclass
class Loaded:
    """A trained model in eval mode on `device`.

    source: the checkpoint file or model folder. record: what it says about its making, see `record_of`. stored: its
    config, whose keys DEVICE and TRAIN.PRECISION are those of training; None where only the running config is known.
    """

    model: nn.Module
    device: torch.device
    precision: Precision
    source: Path
    record: dict[str, Any] = field(default_factory=dict)
    stored: Config | None = None

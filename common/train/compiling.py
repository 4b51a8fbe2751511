"""TRAIN.COMPILE: encoder layers as code of torch.compile."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from torch import nn

from common.errors import ConfigError
from common.nn.bert import Backend, Encoder

COMPILERS = {"cpu": ("CXX", ("g++", "clang++")), "cuda": ("CC", ("gcc", "clang", "cc"))}  # environment, or one of these


def compile_encoders(model: nn.Module, backend: Backend = "inductor") -> None:
    """Compile the layers of every Encoder in the model, at the first training step. See `Encoder.compile_layers`."""
    for module in model.modules():
        if isinstance(module, Encoder):
            module.compile_layers(backend)


def check_compiler(device: torch.device) -> None:
    """Raises ConfigError where PyTorch cannot compile for the device: no compiler, or no Triton for a GPU."""
    variable, names = COMPILERS[device.type]
    if not any(shutil.which(name) for name in (os.environ.get(variable, ""), *names) if name):
        raise ConfigError(
            f"TRAIN.COMPILE true: found none of the compilers {', '.join(names)}; ${variable} names another"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError("TRAIN.COMPILE true on a GPU needs the package triton")

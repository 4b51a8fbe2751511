"""A trained model from a config and a checkpoint, ready to run on its device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from common import distributed
from common.config import Config, dataset_sections
from common.errors import CheckpointError, ConfigError
from common.nn.cpu.memory import keep_freed_memory
from common.precision import Precision, resolve_precision, set_tf32
from common.task import Task
from common.weights import checkpoint
from common.weights.loaded import Loaded
from common.weights.model_folder import read_checkpoint
from common.weights.sizes import check_sizes
from common.weights.text_files import check_text_files


def load_trained(task: Task, cfg: Config, cfg_path: Path, ckpt: Path | None = None) -> Loaded:
    """The model of a config with the weights of `ckpt`; None takes the best checkpoint of the config's training run.

    Raises FileNotFoundError without that file, CheckpointError where it does not fit the config.
    """
    join_group(cfg)
    source = ckpt or checkpoint.best_path(train_folder(cfg, cfg_path), cfg.MODEL_PREFIX)
    content = read_checkpoint(source)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CheckpointError(f"checkpoint {source}: has no state_dict")
    check_text_files(content.get("text_files", {}), cfg, source)
    keep_freed_memory(pick_device(cfg))
    return restore(task, cfg, content["state_dict"], source)


def restore(task: Task, cfg: Config, state: Mapping[str, torch.Tensor], source: Path) -> Loaded:
    """The model of a config with a complete state dict, in eval mode. source: the file that the state dict is from.

    Raises CheckpointError where the keys or shapes differ from those of the model; before the model is built, where the
    config asks for more.
    """
    check_sizes(cfg, state, str(source))
    model = task.build_model(cfg)
    checkpoint.load_model(model, state, str(source))
    device = pick_device(cfg)
    return Loaded(model.to(device).eval(), device, build_precision(task, cfg, device), source)


def train_folder(cfg: Config, cfg_path: Path) -> Path:
    """OUTPUT_PATH/<yaml stem>/<image set>_train (original 3.27)."""
    return Path(cfg.OUTPUT_PATH) / cfg_path.stem / f"{dataset_sections(cfg)[0].TRAIN_IMAGE_SET}_train"


def wants_cuda(cfg: Config) -> bool:
    """Whether a run of this config computes on a CUDA GPU of this machine."""
    return cfg.DEVICE not in ("cpu", "mps") and torch.cuda.is_available()


def join_group(cfg: Config) -> bool:
    """Join the processes of this run, with the time-out of the config. See `distributed.init_from_env`."""
    return distributed.init_from_env(cuda=wants_cuda(cfg), timeout=cfg.TIMEOUT)


def pick_device(cfg: Config) -> torch.device:
    """The device of this process, which becomes the current one. DEVICE auto takes a GPU where there is one.

    Of several GPUs in GPUS a process without a group takes the first.
    Raises ConfigError for DEVICE cuda or mps without such a GPU, and for the number of a GPU that is not there.
    """
    if cfg.DEVICE == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigError("DEVICE mps: PyTorch finds no Metal device, which needs a Mac with an Apple GPU")
        return torch.device("mps")
    if not wants_cuda(cfg):
        if cfg.DEVICE == "cuda":
            raise ConfigError("DEVICE cuda: PyTorch finds no CUDA device")
        return torch.device("cpu")
    if distributed.is_distributed() or not cfg.GPUS:
        return distributed.use_gpu(distributed.local_rank(), "LOCAL_RANK")
    first = str(cfg.GPUS).split(",")[0].strip()
    if not first.isdecimal():
        raise ConfigError(f"GPUS {cfg.GPUS!r}: expected numbers with commas")
    return distributed.use_gpu(int(first), "GPUS (--gpus, device cuda:N)")


def build_precision(task: Task, cfg: Config, device: torch.device) -> Precision:
    """The precision of a config with the loss scales of its task. Sets TRAIN.TF32 for this process.

    Raises ConfigError where `device` lacks the format.
    """
    set_tf32(cfg.TRAIN.TF32, device)
    low, high = task.loss_scale_range
    return Precision(resolve_precision(cfg), device, cfg.TRAIN.FP16_LOSS_SCALE, (low, high or 2.0**24))


def model_size(model: nn.Module) -> str:
    """For the log: "12.3 M parameters, 10.1 M trained"."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{total / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trained"

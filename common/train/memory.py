"""Forecast of the GPU memory of a run."""

from __future__ import annotations

import logging

import torch
from torch import nn

from common import distributed
from common.config import Config
from common.data.sample import Batch
from common.data.synthetic import MadeUp, made_up_batch
from common.precision import Precision

log = logging.getLogger(__name__)

GIB = 2**30
STATES = {"SGD": 1}  # tensors of the size of the parameters that an optimizer keeps; Adam and AdamW keep 2
ADVICE = (
    "smaller TRAIN.BATCH_IMAGES with more GRAD_ACCUMULATE_STEPS, NETWORK.CHECKPOINT_ENCODER or CHECKPOINT_ROIS help"
)


def log_forecast(made_up: MadeUp, cfg: Config, model: nn.Module, precision: Precision) -> None:
    """Logs, on a GPU, the memory of a step on the worst batch. Model and random states stay unchanged.

    Real batches are seldom as large, so a batch that does not fit is a warning. A forecast that fails is a warning too
    and does not end the run.
    """
    if precision.device.type != "cuda":
        return
    available = available_bytes(precision.device)
    what = "a batch of the largest samples"
    try:
        batch = worst_batch(made_up, cfg)
        what = f"a batch of {len(batch)} of the largest samples"
        step = step_bytes(model, batch.to(precision.device), precision)
    except torch.cuda.OutOfMemoryError:
        log.warning("%s does not fit into the %.1f GiB that the GPU has free: %s", what, available / GIB, ADVICE)
        return
    except Exception as error:
        log.warning("no forecast of memory for %s: %s", what, error)
        return
    finally:
        torch.cuda.empty_cache()
    kept = kept_bytes(model, cfg.TRAIN.OPTIMIZER)
    log.info(
        "peak memory about %.1f of %.1f GiB free: %.1f for a step on %s, %.1f for optimizer and exchanges",
        (step + kept) / GIB,
        available / GIB,
        step / GIB,
        what,
        kept / GIB,
    )
    if step + kept > available:
        log.warning("%s will not fit: %s", what, ADVICE)


def available_bytes(device: torch.device) -> int:
    """Returns the bytes of a GPU that this process may use: those that no process holds, and those it holds itself."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


def worst_batch(made_up: MadeUp, cfg: Config) -> Batch:
    """Returns a micro-batch whose samples all have the largest sizes that are usual for the task."""
    size = cfg.TRAIN.BATCH_IMAGES
    return made_up_batch(made_up, cfg, size if isinstance(size, int) else size[0], equal=True)


def step_bytes(model: nn.Module, batch: Batch, precision: Precision) -> int:
    """Returns the most bytes that forward and backward hold on the GPU, with parameters and gradients."""
    torch.cuda.reset_peak_memory_stats(precision.device)
    dry_run(model, batch, precision)
    return torch.cuda.max_memory_allocated(precision.device)


def dry_run(model: nn.Module, batch: Batch, precision: Precision) -> None:
    """Runs forward and backward. Weights, buffers, gradients, mode and random states stay unchanged."""
    training, buffers = model.training, {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = [precision.device] if precision.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            model.train()
            with precision.autocast():
                output = model(batch)
            precision.backward(output.loss)
        finally:
            model.zero_grad(set_to_none=True)
            model.train(training)
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])


def kept_bytes(model: nn.Module, optimizer: str) -> int:
    """Returns the bytes that stay between steps beside parameters and gradients: moments and buckets of exchanges."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return trained * (STATES.get(optimizer, 2) + distributed.is_distributed())

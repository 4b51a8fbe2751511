"""Number formats of a training step: fp32, or autocast to bf16 or fp16 over fp32 weights; the loss scale of fp16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from common.config import Config
from common.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTO = "auto"
DYNAMIC_START = 2.0**16  # as apex starts a dynamic scale


def resolve_precision(cfg: Config) -> str:
    """The precision of a config: TRAIN.PRECISION or, when that is empty, fp16 for TRAIN.FP16 true and else fp32.

    Raises ConfigError for an unknown one.
    """
    name = cfg.TRAIN.PRECISION or ("fp16" if cfg.TRAIN.FP16 else "fp32")
    if name != AUTO:
        _check_name(name)
    return name


def native_precision(device: torch.device) -> str:
    """bf16 where the device has instructions for it, else fp32."""
    if device.type == "cuda":
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        native = device.type == "cpu" and any(found.get(kind) for kind in ("amx_bf16", "avx512_bf16"))
    return "bf16" if native else "fp32"


def set_tf32(allowed: bool, device: torch.device | str) -> None:
    """Set whether fp32 products and convolutions of this process may compute in TF32. Without effect on a CPU.

    PyTorch's defaults are TF32 for convolutions and fp32 for products.
    """
    if torch.device(device).type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed


class Precision:
    """Number format of forward and backward, and the loss scale of fp16.

    One update is: `with autocast()` around each forward, `backward(loss)` for each micro-batch, then
    `unscale(optimizer)` before clipping, then `step(optimizer)` or `skip()`.

    name: fp32, bf16, fp16, or auto for `native_precision`.
    loss_scale: of fp16 only. A number is a constant scale. A "dynamic" scale halves on overflow and doubles after 2000
        steps without one.
    scale_range: smallest and largest value of a dynamic scale.
    Raises ConfigError for wrong values and where the device cannot compute in that format.
    """

    def __init__(
        self,
        name: str,
        device: torch.device | str,
        loss_scale: float | str = "dynamic",
        scale_range: tuple[float, float] = (1.0, 2.0**24),
    ) -> None:
        self.device = torch.device(device)
        name = native_precision(self.device) if name == AUTO else name
        _check_name(name)
        self.name = name
        _check_device(name, self.device)
        if isinstance(loss_scale, str) and loss_scale != "dynamic":
            raise ConfigError(f'TRAIN.FP16_LOSS_SCALE is {loss_scale!r}: expected a number or "dynamic"')
        low, high = scale_range
        if not 0 < low <= high:
            raise ConfigError(f"scale_range {scale_range}: expected 0 < smallest <= largest")
        self.scale_range = (low, high)
        self.static_scale = None if isinstance(loss_scale, str) else float(loss_scale)
        start = min(max(DYNAMIC_START, low), high) if self.static_scale is None else self.static_scale
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=start) if name == "fp16" else None

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.name]

    def autocast(self) -> AbstractContextManager:
        """Context of a forward."""
        return nullcontext() if self.name == "fp32" else torch.autocast(self.device.type, self.dtype)

    def backward(self, loss: Tensor) -> None:
        """Backward of the (scaled) loss."""
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        loss.backward()

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the scale out of the gradients, once before they are clipped or read."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer, **arguments: Tensor | None) -> bool:
        """One optimizer step. Returns False when fp16 overflowed and the step was left out.

        arguments: of `optimizer.step`.
        """
        if self.scaler is None:
            optimizer.step(**arguments)  # type: ignore[arg-type]
            return True
        stepped: list[bool] = []
        hook = optimizer.register_step_post_hook(lambda *_: stepped.append(True))
        self.scaler.step(optimizer, **arguments)  # skips a step with non-finite gradients without reporting it
        hook.remove()
        self._update_scale(self.scaler)
        return bool(stepped)

    def skip(self) -> None:
        """Leave a step out after `unscale`. A dynamic scale then halves if gradients were not finite."""
        if self.scaler is not None:
            self._update_scale(self.scaler)

    def scale(self) -> float:
        """The loss scale now; 1 without fp16. Waits for the device."""
        return self.scaler.get_scale() if self.scaler is not None else 1.0

    def at_lowest_scale(self) -> bool:
        """Whether the loss scale cannot fall: a constant one, or a dynamic one at the end of its range.

        Waits for the device where the scale is dynamic. False without fp16.
        """
        if self.scaler is None:
            return False
        return self.static_scale is not None or self.scale() <= self.scale_range[0]

    def state_dict(self) -> dict[str, Any]:
        return {"name": self.name, "scaler": self.scaler.state_dict() if self.scaler is not None else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a saved dynamic scale. A constant scale keeps the value of the config."""
        saved = state["scaler"]
        if self.scaler is None or self.static_scale is not None or saved is None:
            return
        low, high = self.scale_range
        self.scaler.load_state_dict({**saved, "scale": min(max(saved["scale"], low), high)})

    def _update_scale(self, scaler: torch.amp.GradScaler) -> None:
        scaler.update()
        if self.static_scale is not None:
            scaler.update(self.static_scale)
        else:
            now = scaler.scale(torch.ones((), device=self.device))  # the scale as a tensor, without waiting for it
            scaler.update(now.clamp(*self.scale_range))


def _check_name(name: str) -> None:
    if name not in DTYPES:
        raise ConfigError(f"precision {name!r} is not one of {', '.join((*DTYPES, AUTO))} (TRAIN.PRECISION)")


def _check_device(name: str, device: torch.device) -> None:
    """Raise ConfigError when `device` does not compute in the format."""
    if name == "fp32":
        return
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"precision {name} needs a CPU or CUDA device, this run has {device.type}: use fp32")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"precision {name} on {device}: no CUDA device is available")
    if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(f"{torch.cuda.get_device_name(device)} does not compute in bf16: use fp16 or fp32")

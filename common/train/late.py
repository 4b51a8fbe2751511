"""Values of the device that the host reads later, when the device computed them long ago."""

from __future__ import annotations

import torch
from torch import Tensor


class LateValues:
    """The numbers of a small tensor on their way to the host.

    Reading them waits for what the device had to do before they existed, and not for what it was given since.
    """

    def __init__(self, values: Tensor) -> None:
        self._ready: torch.cuda.Event | None = None
        self._values = values
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()

    def read(self) -> list[float]:
        if self._ready is not None:
            self._ready.synchronize()
        return self._values.tolist()

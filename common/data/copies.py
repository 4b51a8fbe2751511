"""Batches on their way to the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from common.data.sample import Batch
from common.places import PackedSequences, Places


class DeviceCopies:
    """Copies batches to a device. On a GPU the copy runs on a stream of its own, beside the step before it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        """Returns the batch on the device. What the current stream does from now on has the data."""
        if self._stream is None:
            return batch.to(self._device)
        with torch.cuda.stream(self._stream):
            copy = batch.to(self._device)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for tensor in tensors_of(copy):
            tensor.record_stream(current)  # its memory must outlive what the current stream does with it
        return copy


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors of a batch, those of its places and auxiliary batches included."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Batch | Places | PackedSequences):
        for f in fields(value):
            yield from tensors_of(getattr(value, f.name))
    elif isinstance(value, dict):
        yield from tensors_of(tuple(value.values()))
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors_of(item)

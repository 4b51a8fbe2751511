"""Sample and Batch: the named data that flows from a dataset to a model.

Alphabet used in all shape comments: B batch, C choices, T text tokens, R regions, L packed length, D visual size,
H hidden size; images are 3 x height x width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass

from common.regions.lazy_features import StoredRows, read_padded

# Fields of a Sample that collate pads, with the value of the padding.
PAD_VALUES = {
    "image": 0.0,
    "boxes": 0.0,
    "features": 0.0,
    "box_classes": 0,
    "box_masks": 0.0,
    "text_ids": 0,
    "segment_ids": 0,
    "text_tags": 0,
}


@dataclass
class Sample:
    """One item of a dataset.

    id: what a prediction is joined by (question id, annotation id, ...), int or str.
    im_info: float32 [4] = width, height of the resized image in pixels, and the two resize ratios.
    boxes: float32 [R, 4], xyxy in pixels of the resized image.
    image: float32 [3, height, width] normalised, or None with precomputed features.
    features: float32 [R, 2048] precomputed region features, perhaps still to be read from a packed store, or None.
    box_classes: int64 [R] category of each box, or None.
    box_masks: float32 [R, S, S] instance masks relative to their box, or None.
    text_ids: int64 [T] (or [C, T]) word pieces with special tokens. segment_ids, text_tags: the same shape; a tag is
    the
        row of `boxes` that a token is tied to.
    text_lengths: set by `collate` from text_ids; C lists may differ in length, so text fields may be lists of [T]
    tensors.
    targets: tensors by name; empty where the split has no labels. A target's padding value stands in `target_pads`.
    """

    id: int | str
    im_info: Tensor
    boxes: Tensor
    text_ids: Tensor | Sequence[Tensor]
    segment_ids: Tensor | Sequence[Tensor]
    image: Tensor | None = None
    features: Tensor | None = None
    box_classes: Tensor | None = None
    box_masks: Tensor | None = None
    text_tags: Tensor | Sequence[Tensor] | None = None
    targets: dict[str, Tensor] = field(default_factory=dict)
    target_pads: dict[str, float] = field(default_factory=dict)


@dataclass
class Batch:
    """Padded samples. Every field of Sample with a leading axis B, plus the masks of what is real.

    box_mask: bool [B, R]. text_mask: bool [B, T] or [B, C, T]. ids: list of the B sample ids.
    image: float32 [P, 3, height, width], each image once. image_row: int64 [B], the row of `image` of a sample; None
    where each sample has its own.
    stored: the features of the B samples on their way from a worker, which `read` puts into `features`; None otherwise.
    auxiliary: batches of further datasets for the same step (pretraining on plain text beside captions).
    """

    ids: list[int | str]
    im_info: Tensor
    boxes: Tensor
    box_mask: Tensor
    text_ids: Tensor
    segment_ids: Tensor
    text_mask: Tensor
    image: Tensor | None = None
    image_row: Tensor | None = None
    features: Tensor | None = None
    box_classes: Tensor | None = None
    box_masks: Tensor | None = None
    text_tags: Tensor | None = None
    targets: dict[str, Tensor] = field(default_factory=dict)
    auxiliary: tuple[Batch, ...] = ()
    stored: list[StoredRows] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_samples(self) -> int:
        """Samples of the step, with those of the auxiliary batches."""
        return len(self) + sum(len(batch) for batch in self.auxiliary)

    def to(self, device: torch.device | str) -> Batch:
        """A copy with every tensor on `device` (tensors already there are shared)."""
        return Batch(**{f.name: _move(getattr(self, f.name), device) for f in fields(self)})

    def read(self, empty: Callable[..., Tensor] = torch.empty) -> Batch:
        """With its features in memory that `empty` gives; itself if they are in memory."""
        return self if self.stored is None else replace(self, features=read_padded(self.stored, empty), stored=None)

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory. The loader calls this in a thread of its own, while the model computes."""
        batch = self.read(partial(torch.empty, pin_memory=True))
        return Batch(**{f.name: _pin(getattr(batch, f.name)) for f in fields(batch)})


@dataclass
class ModelOutput:
    """What a task module returns.

    loss: scalar to minimise, None when the batch has no targets.
    losses: the parts of it by name, for the log. predictions: tensors by name.
    """

    predictions: dict[str, Tensor]
    loss: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)

    def values(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Everything a metric may read, by name."""
        return {**targets, **self.predictions, **self.losses}


register_dataclass(ModelOutput)  # for DistributedDataParallel, which has to find the loss in it


def _move(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {k: _move(v, device) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(batch.to(device) for batch in value)
    return value


def _pin(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.pin_memory()
    if isinstance(value, dict):
        return {k: _pin(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(batch.pin_memory() for batch in value)
    return value

"""Sample and Batch: the named data that flows from a dataset to a model.

Letters of all shape comments: B batch, C choices, T text tokens, R regions, L packed length, D visual size,
H hidden size. Images are 3 x height x width.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass

from common.places import Places
from common.regions.lazy_features import Features

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
    text_ids: int64 [T] word pieces with special tokens; [C, T], or a list of C tensors [T], with choices.
    segment_ids: of the same shape.
    text_tags: of the same shape, the row of `boxes` that a token is tied to, or None.
    image: float32 [3, height, width] normalised, or None with precomputed features.
    image_key: equal for samples that show the same pixels, in the same orientation, so that a batch holds the
        image once. None for a sample that shares its image with no other.
    features: float32 [R, 2048] precomputed region features, or None. LazyFeatures are read when the batch is used.
    box_classes: int64 [R] category of each box, or None.
    box_masks: float32 [R, S, S] instance masks relative to their box, or None.
    targets: tensors by name; empty where the split has no labels.
    target_pads: the padding value of targets, by name; 0 for a target without one.
    """

    id: int | str
    im_info: Tensor
    boxes: Tensor
    text_ids: Tensor | Sequence[Tensor]
    segment_ids: Tensor | Sequence[Tensor]
    image: Tensor | None = None
    image_key: Hashable = None
    features: Features | None = None
    box_classes: Tensor | None = None
    box_masks: Tensor | None = None
    text_tags: Tensor | Sequence[Tensor] | None = None
    targets: dict[str, Tensor] = field(default_factory=dict)
    target_pads: dict[str, float] = field(default_factory=dict)


@dataclass
class Batch:
    """Padded samples: the fields of Sample with a leading axis B, and masks that are True at real entries.

    ids: list of the B sample ids. box_mask: bool [B, R]. text_mask: bool [B, T] or [B, C, T].
    image: float32 [P, 3, height, width], each image once. image_row: int64 [B], the row of `image` of a sample; None
        where each sample has its own (P = B, in the same order).
    auxiliary: batches of further datasets for the same step (pretraining on plain text beside captions).
    places: indices of what the masks and targets mark as real, so that a model on a GPU need not wait for them. Empty
        in a batch made by hand, whose masks the model reads. Code that changes a mask or a target must empty it.
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
    places: Places = field(default_factory=Places)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_samples(self) -> int:
        """Number of samples of the step, with those of the auxiliary batches."""
        return len(self) + sum(len(batch) for batch in self.auxiliary)

    def to(self, device: torch.device | str) -> Batch:
        """Returns a copy with every tensor on `device`. Tensors that are there already are shared."""
        return Batch(**{f.name: _move(getattr(self, f.name), device) for f in fields(self)})

    def pin_memory(self) -> Batch:
        """Returns a copy in page-locked memory. DataLoader calls this in a thread, while the model computes."""
        return Batch(**{f.name: _pin(getattr(self, f.name)) for f in fields(self)})


@dataclass
class ModelOutput:
    """The output of a task's module.

    predictions: tensors by name. loss: scalar to minimise, None when the batch has no targets.
    losses: the parts of the loss by name, for the log.
    """

    predictions: dict[str, Tensor]
    loss: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)

    def values(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All tensors that a metric may read, by name."""
        return {**targets, **self.predictions, **self.losses}


register_dataclass(ModelOutput)  # DistributedDataParallel searches the output for tensors, the loss among them


def _move(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {k: _move(v, device) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(batch.to(device) for batch in value)
    if isinstance(value, Places):
        return value.map(lambda places: places.to(device, non_blocking=True))
    return value


def _pin(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.pin_memory()
    if isinstance(value, dict):
        return {k: _pin(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(batch.pin_memory() for batch in value)
    if isinstance(value, Places):
        return value.map(Tensor.pin_memory)
    return value

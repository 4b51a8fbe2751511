"""Samples to a Batch: every axis padded to the largest of the batch, with masks of what is real."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.data.sample import PAD_VALUES, Batch, Sample
from common.places import NO_TARGET, PackedSequences, Places, target_places, true_places
from common.regions.lazy_features import Features, LazyFeatures, read_padded
from common.regions.regions import check_finite_boxes

PER_BOX = ("features", "box_classes", "box_masks")
PER_TOKEN = ("segment_ids", "text_tags")


@dataclass
class UnreadBatch:
    """A batch on its way from a worker of the loader: `read` adds the features that the worker left in their store.

    batch: without `features`. features: those of its samples, at least one of them lazy.
    """

    batch: Batch
    features: list[Features]

    def read(self, pinned: bool = False) -> Batch:
        """Returns the batch with its features in memory, float32 [B, R, 2048]. pinned: in page-locked memory."""
        return dataclasses.replace(self.batch, features=read_padded(self.features, pinned))

    def pin_memory(self) -> Batch:
        """Returns the batch in page-locked memory. DataLoader calls this in a thread, while the model computes."""
        return self.read(pinned=True).pin_memory()


def collate(samples: Sequence[Sample]) -> Batch:
    """Pads each field with its value of PAD_VALUES, each target with its value of `target_pads` (0 when absent).

    Samples with equal image keys share a row of the batch's images. Lazy features are copied to their place.

    Raises ValueError, naming the sample, when samples disagree about the fields or targets that are present, when the
    fields of one sample disagree about its number of boxes or tokens, or (RegionError) when a box is NaN or infinite.
    """
    batch = collate_unread(samples)
    return batch.read() if isinstance(batch, UnreadBatch) else batch


def collate_unread(samples: Sequence[Sample]) -> Batch | UnreadBatch:
    """`collate` for a worker of the loader: lazy features stay in their store, and the system starts to load them."""
    for sample in samples:
        _check(sample, samples[0])
    lazy = [sample.features for sample in samples if isinstance(sample.features, LazyFeatures)]
    apart = {"image", "features"} if lazy else {"image"}
    fields = {name: _padded(samples, name) for name in PAD_VALUES if name not in apart}
    if not np.isfinite(fields["boxes"].numpy()).all():  # once a batch, on the CPU: RoIAlign is a crash or silence
        for sample in samples:
            check_finite_boxes(sample.boxes, f"sample {sample.id!r}")
    image, image_row = _images(samples)
    batch = Batch(
        image=image,
        image_row=image_row,
        ids=[sample.id for sample in samples],
        im_info=torch.stack([sample.im_info for sample in samples]),
        box_mask=pad_stack([torch.ones(len(sample.boxes), dtype=torch.bool) for sample in samples], False),
        text_mask=pad_stack([_ones(sample.text_ids) for sample in samples], False),
        targets={
            name: pad_stack([sample.targets[name] for sample in samples], samples[0].target_pads.get(name, 0))
            for name in samples[0].targets
        },
        **fields,
    )
    batch.places = _places(batch, samples[0].target_pads)
    if not lazy:
        return batch
    for features in lazy:
        features.prefetch()
    return UnreadBatch(batch, [sample.features for sample in samples if sample.features is not None])


def pad_stack(items: Sequence[Any], value: float) -> Tensor:
    """[n, largest of each axis]: the items at the top left, `value` elsewhere. The dtype is that of the items.

    items: tensors or arrays with the same number of axes, lists of numbers, or lists of such items (padded on their own
    first). An empty list counts as int64, so that an empty sentence stays one (original 4.13). Raises ValueError when
    the items differ in the number of axes or in dtype.
    """
    tensors = [_tensor(item, value) for item in items]
    kinds = {(t.dim(), t.dtype) for t in tensors}
    if len(kinds) != 1:
        raise ValueError(f"cannot stack tensors that differ in axes or dtype: {sorted(map(str, kinds))}")
    shape = [max(sizes) for sizes in zip(*(t.shape for t in tensors), strict=True)]
    out = tensors[0].new_full((len(tensors), *shape), value)
    for row, tensor in zip(out, tensors, strict=True):
        row[tuple(slice(size) for size in tensor.shape)] = tensor
    return out


def clip_pad(x: Tensor, shape: Sequence[int], value: float) -> Tensor:
    """`x` cut or padded at the end of every axis to `shape`; the dtype is kept (original 4.12)."""
    out = x.new_full(tuple(shape), value)
    overlap = tuple(slice(min(a, b)) for a, b in zip(x.shape, shape, strict=True))
    out[overlap] = x[overlap]
    return out


def _images(samples: Sequence[Sample]) -> tuple[Tensor | None, Tensor | None]:
    """[P, 3, height, width], each image once, and int64 [B], the row of each sample; None where P = B."""
    images: dict[Hashable, Tensor] = {}  # a sample without a key has one that no other has
    keys = [("sample", i) if s.image_key is None else ("image", s.image_key) for i, s in enumerate(samples)]
    for key, sample in zip(keys, samples, strict=True):
        if sample.image is None:
            return None, None
        if images.setdefault(key, sample.image).shape != sample.image.shape:
            raise ValueError(f"sample {sample.id!r}: the image_key {sample.image_key!r} stands for images of two sizes")
    stacked = pad_stack([*images.values()], PAD_VALUES["image"])
    row = {key: i for i, key in enumerate(images)}
    return stacked, torch.tensor([row[key] for key in keys]) if len(images) < len(samples) else None


def _places(batch: Batch, target_pads: Mapping[str, float]) -> Places:
    """The indices of a batch on the CPU."""
    words, boxes = batch.text_mask.sum(-1), batch.box_mask.sum(1)  # (B,) or (B, C), and (B,)
    if words.dim() > 1:
        boxes = boxes[:, None]
    marked = {
        name: target
        for name, target in batch.targets.items()
        if target.dtype == torch.bool or (target.dtype == torch.int64 and target_pads.get(name) == NO_TARGET)
    }
    return Places(
        boxes=true_places(batch.box_mask),
        sequences=PackedSequences.of_lengths((words + boxes + 1).flatten()),  # END is one more
        targets={name: target_places(target) for name, target in marked.items()},
    )


def _padded(samples: Sequence[Sample], name: str) -> Any:
    """The padded field, None where the samples have none. (Any, because most fields are never None.)"""
    if getattr(samples[0], name) is None:
        return None
    return pad_stack([getattr(sample, name) for sample in samples], PAD_VALUES[name])


def _check(sample: Sample, first: Sample) -> None:
    for name in PAD_VALUES:
        if (getattr(sample, name) is None) != (getattr(first, name) is None):
            raise ValueError(f"{name} is present in only one of the samples {first.id!r} and {sample.id!r} of a batch")
    if sample.targets.keys() != first.targets.keys():
        raise ValueError(f"targets of sample {sample.id!r} are {[*sample.targets]}, of {first.id!r} {[*first.targets]}")
    for name in PER_BOX:
        rows = getattr(sample, name)
        if rows is not None and len(rows) != len(sample.boxes):
            raise ValueError(f"sample {sample.id!r}: {len(rows)} rows of {name} for {len(sample.boxes)} boxes")
    for name in PER_TOKEN:
        tokens = getattr(sample, name)
        if tokens is not None and _lengths(tokens) != _lengths(sample.text_ids):
            raise ValueError(
                f"sample {sample.id!r}: {name} of {_lengths(tokens)} tokens, text_ids of {_lengths(sample.text_ids)}"
            )


def _tensor(item: Any, value: float) -> Tensor:
    if isinstance(item, Tensor):
        return item
    if isinstance(item, np.ndarray):
        return torch.from_numpy(item)
    if len(item) and isinstance(item[0], (Tensor, np.ndarray, list, tuple)):
        return pad_stack(item, value)
    return torch.tensor(item, dtype=None if len(item) else torch.int64)


def _ones(text: Tensor | Sequence[Tensor]) -> Any:
    """True for each token of a text field, in its form."""
    return torch.ones_like(text, dtype=torch.bool) if isinstance(text, Tensor) else [_ones(t) for t in text]


def _lengths(text: Tensor | Sequence[Tensor]) -> list[int]:
    return list(text.shape) if isinstance(text, Tensor) else [len(t) for t in text]

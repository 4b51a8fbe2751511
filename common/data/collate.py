"""Samples to a Batch: every axis padded to the largest of the batch, with masks of what is real."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.data.sample import PAD_VALUES, Batch, Sample
from common.regions.lazy_features import StoredRows

PER_BOX = ("features", "box_classes", "box_masks")
PER_TOKEN = ("segment_ids", "text_tags")


def collate(samples: Sequence[Sample], read: bool = True) -> Batch:
    """Pads each field with its value of PAD_VALUES, each target with its value of `target_pads` (0 when absent).

    Samples whose image is one and the same tensor share a row of the batch's images. read: False leaves features in
    their packed store, for `Batch.read` of another process.

    Raises ValueError, naming the sample, when samples disagree about the fields or targets that are present, or when
    the fields of one sample disagree about its number of boxes or tokens.
    """
    for sample in samples:
        _check(sample, samples[0])
    stored = _stored(samples)
    fields = {
        name: _padded(samples, name, pad)
        for name, pad in PAD_VALUES.items()
        if name != "image" and not (name == "features" and stored)
    }
    by_image = {id(sample.image): sample for sample in samples}
    row = {image: i for i, image in enumerate(by_image)}
    shared = len(by_image) < len(samples) and samples[0].image is not None
    batch = Batch(
        image=_padded([*by_image.values()], "image", PAD_VALUES["image"]),
        image_row=torch.tensor([row[id(sample.image)] for sample in samples]) if shared else None,
        ids=[sample.id for sample in samples],
        im_info=torch.stack([sample.im_info for sample in samples]),
        box_mask=pad_stack([torch.ones(len(sample.boxes), dtype=torch.bool) for sample in samples], False),
        text_mask=pad_stack([_ones(sample.text_ids) for sample in samples], False),
        targets={
            name: pad_stack([sample.targets[name] for sample in samples], samples[0].target_pads.get(name, 0))
            for name in samples[0].targets
        },
        **fields,
        stored=stored,
    )
    return batch.read() if read else batch


def pad_stack(items: Sequence[Any], value: float) -> Tensor:
    """[n, largest of each axis]: the items at the top left, `value` elsewhere. The dtype is that of the items.

    items: tensors or arrays with the same number of axes, lists of numbers, or lists of such items (padded on their own
    first). An empty list counts as int64, so that an empty sentence stays one (spec 30, 17.12). Raises ValueError when
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
    """`x` cut or padded at the end of every axis to `shape`; the dtype is kept (spec 04 §4.3)."""
    out = x.new_full(tuple(shape), value)
    overlap = tuple(slice(min(a, b)) for a, b in zip(x.shape, shape, strict=True))
    out[overlap] = x[overlap]
    return out


def _stored(samples: Sequence[Sample]) -> list[StoredRows] | None:
    """The features that are not read yet, None where there are others too."""
    rows = [s.features for s in samples if isinstance(s.features, StoredRows) and s.features.unread]
    return rows if len(rows) == len(samples) else None


def _padded(samples: Sequence[Sample], name: str, value: float) -> Any:
    """The padded field, None where the samples have none (fields that are never None give a tensor)."""
    if getattr(samples[0], name) is None:
        return None
    return pad_stack([getattr(sample, name) for sample in samples], value)


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

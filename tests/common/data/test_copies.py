"""Copies of batches: nothing of a batch is left behind."""

from __future__ import annotations

import torch

from common.data.copies import DeviceCopies, tensors_of
from tests.made_up import config, made_up_batch


def test_every_tensor_of_a_batch() -> None:
    """Auxiliary batches, targets and places included: memory of a forgotten one could be reused during the step."""
    batch = made_up_batch("pretrain", config("pretrain"), 2, words=7, boxes=5)
    found = {id(tensor) for tensor in tensors_of(batch)}
    for part in (batch, *batch.auxiliary):
        expected = [v for v in vars(part).values() if isinstance(v, torch.Tensor)]
        expected += [*part.targets.values(), part.places.boxes, part.places.sequences.at, *part.places.targets.values()]
        assert {id(tensor) for tensor in expected} <= found
    assert not any(tensor.device.type == "meta" for tensor in tensors_of(batch))
    assert all(tensor.device.type == "meta" for tensor in tensors_of(DeviceCopies(torch.device("meta"))(batch)))

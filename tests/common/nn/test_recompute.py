"""Activations that are computed again for the backward pass: the same gradients from less memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from common.nn.bert import Encoder
from common.nn.cpu.bert import FastEncoder
from common.nn.fast_rcnn import FastRCNN


def saved_bytes(run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What `run` gives, and the bytes that autograd keeps for its backward, each storage once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return run(), sum(kept.values())


def final_states(encoder: Encoder, hidden: Tensor, mask: Tensor) -> Tensor:
    return encoder(hidden, mask).layers[-1]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", [Encoder, FastEncoder])
def test_encoder(kind):
    """Dropout is the same both times."""
    hidden, mask = torch.randn(2, 20, 32), torch.ones(2, 20, dtype=torch.bool)
    found = []
    for again in (False, True):
        torch.manual_seed(1)
        model = kind(3, 32, 4, 128, recompute=again)
        output, size = saved_bytes(partial(final_states, model, hidden, mask))
        found.append((output.detach(), gradients(model, output.pow(2).sum()), size))
    (first, expected, most), (second, got, least) = found
    assert torch.equal(first, second) and expected.keys() == got.keys()
    assert all(torch.equal(expected[k], got[k]) for k in expected)
    assert least < 0.3 * most


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    corner = 60 * torch.rand(2, 4, 2)
    boxes = torch.cat([corner, corner + 30], dim=-1)
    mask = torch.tensor([[True, True, True, False], [True, False, True, True]])
    masks = (torch.rand(2, 4, 14, 14) < 0.5).float()
    return {"images": torch.randn(2, 3, 96, 96), "boxes": boxes, "box_mask": mask, "box_masks": masks}


class TestRegions:
    def run(self, inputs: dict[str, Tensor], chunk: int, again: bool):
        torch.manual_seed(0)
        model = FastRCNN(50, final_dim=16, roi_chunk=chunk, recompute_rois=again)
        output, size = saved_bytes(lambda: model.region_features(**inputs))
        return output.detach(), gradients(model, output.pow(2).sum()), size

    @pytest.mark.parametrize(("chunk", "again"), [(4, False), (2, True), (0, True)])
    def test_the_same_features_and_gradients(self, inputs, chunk, again):
        expected, gradient, most = self.run(inputs, 0, False)
        got, other, size = self.run(inputs, chunk, again)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        assert gradient.keys() == other.keys()
        for key, value in gradient.items():
            scale = float(value.abs().max())
            torch.testing.assert_close(
                other[key], value, rtol=1e-4, atol=1e-5 * scale, msg=lambda text, k=key: f"{k} {text}"
            )
        if again:
            assert size < 0.8 * most

    def test_statistics_of_batch_norms_need_all_regions(self):
        with pytest.raises(ValueError, match="need frozen batch norms"):
            FastRCNN(50, frozen_bn=False, roi_chunk=2)

"""Padding taken out and put back, and heads of packed states in padded sequences."""

import pytest
import torch

from common.nn.packing import PackedHeads, PackedPositions, longest, pack, real_places, unpack

MASK = torch.tensor([[True, True, False], [True, False, True], [False, False, True]])
HEADS, D = 2, 4


def test_pack_and_unpack():
    x = torch.arange(9.0).view(3, 3, 1)
    places = real_places(MASK)
    packed = pack(x, places)
    assert packed.flatten().tolist() == [0, 1, 3, 5, 8]  # row-major
    assert torch.equal(unpack(packed, MASK, places), x * MASK[..., None])
    assert longest(torch.tensor([[2], [4]]), 9) == 4


def test_an_export_keeps_the_padding():
    """With another number of real elements the exported program gives what the module gives."""

    class Doubled(torch.nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            places = real_places(mask)
            return unpack(2 * pack(x, places), mask, places) + longest(mask.sum(1), mask.shape[1])

    x = torch.rand(3, 3, 2)
    program = torch.export.export(Doubled(), (x, MASK)).module()
    other = MASK.clone()
    other[2, 0] = True
    real = 2 * x * other[..., None]
    assert torch.equal(program(x, other), real + 3)  # the limit
    assert torch.equal(Doubled()(x, other), real + 2)  # the longest


@pytest.mark.parametrize("kind", [PackedHeads, PackedPositions])
def test_split_and_join_by_loops(kind):
    count = int(MASK.sum())
    joint = torch.arange(count * 3 * HEADS * D, dtype=torch.float32).view(count, -1)
    ways = kind(MASK, MASK.nonzero().t(), HEADS)
    parts = torch.stack(ways.split(joint))
    assert parts.shape == (3, 3, HEADS, 3, D)
    places = MASK.nonzero().tolist()
    for row, (sample, position) in enumerate(places):
        want = joint[row].view(3, HEADS, D)
        assert torch.equal(parts[:, sample, :, position], want)
    # The way back, of the values alone.
    assert torch.equal(ways.join(parts[2]), joint.view(count, 3, -1)[:, 2])


@pytest.mark.parametrize("kind", [PackedHeads, PackedPositions])
@pytest.mark.parametrize("mask", [MASK, torch.ones_like(MASK)])
def test_gradients_are_those_of_indexing(kind, mask):
    """Padding has no gradient on the way back, whatever its copies got."""
    count = int(mask.sum())
    ways = kind(mask, mask.nonzero().t(), HEADS)
    context = torch.randn(3, HEADS, 3, D, requires_grad=True)
    weight = torch.randn(count, HEADS * D)
    (ways.join(context) * weight).sum().backward()
    want = torch.zeros(3, 3, HEADS * D)
    want[mask] = weight
    assert torch.equal(context.grad, want.unflatten(2, (HEADS, D)).transpose(1, 2))
    joint = torch.randn(count, 3 * HEADS * D, requires_grad=True)
    grad = torch.randn(3, 3, HEADS, 3, D)
    torch.stack(ways.split(joint)).backward(grad)
    want = grad.permute(1, 3, 0, 2, 4)[mask]  # (N, 3, heads, d)
    assert torch.equal(joint.grad, want.flatten(1))

"""Heads of packed rows and padded sequences of heads."""

import torch

from common.nn.rows import HeadRows

MASK = torch.tensor([[True, True, False], [True, False, True], [False, False, True]])
HEADS, D = 2, 4


def test_split_and_join_by_loops():
    count = int(MASK.sum())
    joint = torch.arange(count * 3 * HEADS * D, dtype=torch.float32).view(count, -1)
    rows = HeadRows(MASK, HEADS)
    parts = rows.split(joint)
    assert parts.shape == (3, 3 * HEADS, 3, D)
    places = MASK.nonzero().tolist()
    for row, (sample, position) in enumerate(places):
        want = joint[row].view(3, HEADS, D)
        assert torch.equal(parts.unflatten(1, (3, HEADS))[:, sample, :, position], want)
    # The way back, of the values alone.
    assert torch.equal(rows.join(parts[2]), joint.view(count, 3, -1)[:, 2])


def test_gradients_are_those_of_indexing():
    """Padding has no gradient on the way back, whatever its copies got."""
    count = int(MASK.sum())
    rows, full = HeadRows(MASK, HEADS), HeadRows(torch.ones_like(MASK), HEADS)
    for ways, number in ((rows, count), (full, MASK.numel())):
        context = torch.randn(3 * HEADS, 3, D, requires_grad=True)
        weight = torch.randn(number, HEADS * D)
        (ways.join(context) * weight).sum().backward()
        mask = MASK if ways is rows else torch.ones_like(MASK)
        want = torch.zeros(3, 3, HEADS * D)
        want[mask] = weight
        assert torch.equal(context.grad, want.unflatten(2, (HEADS, D)).transpose(1, 2).flatten(0, 1))
        joint = torch.randn(number, 3 * HEADS * D, requires_grad=True)
        grad = torch.randn(3, 3 * HEADS, 3, D)
        ways.split(joint).backward(grad)
        want = grad.unflatten(1, (3, HEADS)).permute(1, 3, 0, 2, 4)[mask]  # (N, 3, heads, d)
        assert torch.equal(joint.grad, want.flatten(1))

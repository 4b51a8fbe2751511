"""The dropout of the fast path is dropout."""

from __future__ import annotations

import pytest
import torch

from common.nn.cpu.dropout import FastDropout, dropout, kept, masked


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_right_share_goes_and_the_mean_stays(p):
    torch.manual_seed(0)
    out = dropout(torch.ones(400, 1001), p)
    assert out.unique().tolist() == [0.0, pytest.approx(1 / (1 - p))]
    assert (out == 0).float().mean() == pytest.approx(p, abs=3e-3)
    columns, rows = (out == 0).float().mean(0), (out == 0).float().mean(1)
    assert columns.std() < 0.03 and rows.std() < 0.03  # no pattern in the bytes of a random number


def test_neighbours_are_independent():
    torch.manual_seed(1)
    bits = kept((1_000_000,), 0.5, torch.int16) + 0.5
    for step in (1, 2, 3, 4, 8):
        assert abs((bits[step:] * bits[:-step]).mean()) < 1e-3


def test_it_follows_torchs_generator_and_passes_gradients():
    x = torch.randn(5, 7, requires_grad=True)
    torch.manual_seed(3)
    one = dropout(x, 0.3)
    torch.manual_seed(3)
    assert torch.equal(one, dropout(x, 0.3)) and not torch.equal(one, dropout(x, 0.3))
    one.sum().backward()
    assert torch.equal(x.grad == 0, one == 0)
    assert dropout(x.bfloat16(), 0.3).dtype == torch.bfloat16


def test_the_ends_and_evaluation():
    x = torch.randn(4, 4)
    assert dropout(x, 0.0) is x and not dropout(x, 1.0).any()
    module = FastDropout(0.5)
    assert module.eval()(x) is x and not torch.equal(module.train()(x), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_stays_is_left_alone_but_for_the_factor(dtype):
    x = torch.randn(3, 5, 7, dtype=dtype).transpose(0, 2).requires_grad_()
    out, factor = masked(x, 0.25)
    assert factor == pytest.approx(4 / 3) and out.dtype == dtype and out.shape == x.shape
    assert 0 < (out == 0).sum() < out.numel() and torch.equal(out[out != 0], x[out != 0])
    out.backward(x.detach())
    assert torch.equal(x.grad, out)


def test_a_probability_between_two_bytes_is_met():
    """0.1 is 25.6 / 256: 25 and 26 alone would be off by 2.3 and 1.6 percent."""
    torch.manual_seed(2)
    gone = (kept((20_000_000,), 0.1, torch.int16) == 0).float().mean()
    assert gone == pytest.approx(0.1, abs=3e-4)


def test_nearly_everything_may_go():
    torch.manual_seed(4)
    assert 0 < (dropout(torch.ones(100_000), 0.999) != 0).sum() < 200

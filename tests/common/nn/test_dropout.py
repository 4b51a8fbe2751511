"""Our dropout is dropout."""

from __future__ import annotations

import pytest
import torch

from common.nn.dropout import Dropout, dropout, kept


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_right_share_goes_and_the_mean_stays(p):
    torch.manual_seed(0)
    out = dropout(torch.ones(400, 1001), p)
    assert out.unique().tolist() == [0.0, pytest.approx(1 / (1 - p))]
    assert (out == 0).float().mean() == pytest.approx(p, abs=3e-3)
    columns, rows = (out == 0).float().mean(0), (out == 0).float().mean(1)
    assert columns.std() < 0.03 and rows.std() < 0.03  # no pattern in the four parts of a random number


def test_neighbours_are_independent():
    torch.manual_seed(1)
    bits = kept((1_000_000,), 0.5, torch.float32) - 0.5
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
    module = Dropout(0.5)
    assert module.eval()(x) is x and not torch.equal(module.train()(x), x)

"""The fast encoder beside the plain one: the same numbers, and every module that is not ours is called."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from common.nn.bert import Encoder
from common.nn.cpu.bert import FastEncoder

NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0}


def encoder(kind: type[Encoder], **changes) -> Encoder:
    """Without dropout a FastEncoder and an Encoder with the same weights are the same function."""
    torch.manual_seed(0)
    sizes = {"num_layers": 3, "hidden_size": 8, "num_heads": 2, "intermediate_size": 16} | changes
    return kind(**sizes)


@pytest.mark.parametrize("training", [False, True])
def test_without_padding_the_work_is_the_same(training):
    """States of real positions, and gradients of weights and of the input, are those of the padded computation."""
    torch.manual_seed(0)
    models = [
        encoder(kind, hidden_dropout=0.0, attention_dropout=0.0).train(training) for kind in (FastEncoder, Encoder)
    ]
    mask = torch.tensor([[True] * 6, [True, True, False, False, False, False], [True, False, True, True, False, True]])
    found = []
    for model in models:
        hidden = torch.linspace(-1, 1, 3 * 6 * 8).view(3, 6, 8).requires_grad_()
        out = model(hidden, mask, all_layers=True)
        out.layers[-1][mask].square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        found.append([hidden.grad[mask], *(layer[mask] for layer in out.layers), *gradients])
        assert [layer.shape for layer in out.layers] == [hidden.shape] * 3
        if model is models[0]:
            assert not out.layers[-1][~mask].any()
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_bf16_autocast_computes_both_paths():
    model = encoder(FastEncoder).eval()
    hidden, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    want = model(hidden, mask).layers[-1][mask]
    with torch.autocast("cpu", torch.bfloat16):
        for with_probs in (False, True):
            got = model(hidden, mask, with_probs=with_probs).layers[-1][mask]
            torch.testing.assert_close(got.float(), want, atol=0.1, rtol=0)


@pytest.mark.parametrize("act", ["gelu", "relu", "swish"])
@pytest.mark.parametrize("training", [False, True])
def test_bf16_on_a_cpu_is_float32_but_for_rounding(training, act):
    """Outputs, and gradients of the input and of all weights. A relu that rounding turns on or off counts fully."""
    torch.manual_seed(0)
    model = encoder(
        FastEncoder, hidden_size=64, intermediate_size=128, hidden_act=act, hidden_dropout=0.0, attention_dropout=0.0
    )
    model.train(training)
    hidden, mask = torch.randn(4, 9, 64), torch.arange(9) < torch.tensor([[9], [5], [1], [7]])
    found = []
    for low in (False, True):
        x = hidden.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = model(x, mask, all_layers=True).layers
        assert all(layer.dtype == torch.float32 for layer in out)
        (out[-1][mask] * hidden[mask]).sum().backward()
        found.append([x.grad[mask], *(layer[mask] for layer in out), *(p.grad.clone() for p in model.parameters())])
        model.zero_grad()
    for want, got in zip(*found, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() <= (0.1 if act == "relu" else 0.03) * want.norm() + 0.03


def test_bf16_without_gradients_sees_changed_weights():
    """What is cast once for many batches is cast again after an update, a load and a copy of the model."""
    model, mask = encoder(FastEncoder).eval(), torch.ones(2, 5, dtype=torch.bool)
    hidden = torch.randn(2, 5, 8)

    def run(model: Encoder) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return model(hidden, mask).layers[-1]

    before = run(model)
    assert torch.equal(run(model), before)
    other = encoder(FastEncoder).eval()
    for p in other.parameters():
        nn.init.normal_(p, std=0.5)
    want = run(other)
    assert not torch.allclose(want, before)
    twin = copy.deepcopy(model)
    model.load_state_dict(other.state_dict())
    assert torch.equal(run(model), want) and torch.equal(run(twin), before)
    with torch.no_grad():
        for p, q in zip(twin.parameters(), other.parameters(), strict=True):
            p.copy_(q)
    assert torch.equal(run(twin), want)


def test_bf16_states_ask_for_no_gradient_of_the_rest():
    """Frozen weights stay without gradients."""
    model = encoder(FastEncoder)
    for p in model.layer[0].parameters():
        p.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)).layers[-1].sum().backward()
    assert all(p.grad is None for p in model.layer[0].parameters())
    assert all(p.grad is not None for p in model.layer[1].parameters())

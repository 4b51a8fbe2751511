"""Spec 02 §2 (building blocks), §3.4 (mask) and §3.6 (initial weights)."""

import copy
import math

import pytest
import torch
from torch import nn

from common.nn.bert import (
    Encoder,
    Pooler,
    PredictionHeadTransform,
    SelfAttention,
    activation,
    init_weights,
    layer_norm,
)


def encoder(**changes) -> Encoder:
    torch.manual_seed(0)
    sizes = {"num_layers": 3, "hidden_size": 8, "num_heads": 2, "intermediate_size": 16} | changes
    return Encoder(**sizes)


def test_layer_norm_has_the_small_epsilon_inside_the_root():
    # Biased variance of (0, 2e-6) is 1e-12, the size of eps: 1e-6 / sqrt(2e-12).
    got = layer_norm(2)(torch.tensor([[0.0, 2e-6]]))
    torch.testing.assert_close(got, torch.tensor([[-math.sqrt(0.5), math.sqrt(0.5)]]))


@pytest.mark.parametrize(("name", "want"), [("gelu", 0.8413447), ("relu", 1.0), ("swish", 0.7310586)])
def test_activations_at_one(name, want):
    """The exact gelu: 1 * Phi(1); its tanh form would give 0.8411920."""
    assert activation(name)(torch.tensor(1.0)).item() == pytest.approx(want, abs=1e-6)


def test_unknown_names_and_sizes_raise():
    with pytest.raises(ValueError, match="'tanh': expected one of gelu, relu, swish"):
        activation("tanh")
    with pytest.raises(ValueError, match="hidden_size 10 is not a multiple of num_attention_heads 4"):
        SelfAttention(10, 4, 0.0)


def identity_attention(dropout: float = 0.0) -> SelfAttention:
    """One head of width 4 whose query, key and value are the input."""
    attention = SelfAttention(4, 1, dropout)
    for p in (attention.query, attention.key, attention.value):
        nn.init.eye_(p.weight)
        nn.init.zeros_(p.bias)
    return attention.eval()


@pytest.mark.parametrize("with_probs", [False, True])
def test_attention_by_hand(with_probs):
    hidden = torch.eye(4)[None, :3] * 2  # orthogonal: scores 4 / sqrt(4) = 2 with itself, 0 with the others
    bias = torch.tensor([0.0, 0.0, -10000.0]).view(1, 1, 1, 3)
    context, probs = identity_attention()(hidden, bias, with_probs)
    e = math.exp(2)
    want = torch.tensor([[e, 1, 0], [1, e, 0], [1, 1, 0]]) / torch.tensor([[e + 1], [e + 1], [2]])
    torch.testing.assert_close(context[0], want @ hidden[0])
    assert (probs is None) != with_probs
    if with_probs:
        assert probs.shape == (1, 1, 3, 3)
        torch.testing.assert_close(probs[0, 0], want)


def test_returned_probabilities_are_those_after_dropout():
    """Spec 02 §2: with dropout 0.5 each entry is 0 or twice its value."""
    torch.manual_seed(0)
    attention = identity_attention(0.5)
    hidden, bias = torch.randn(1, 12, 4), torch.zeros(1, 1, 1, 12)
    plain = attention(hidden, bias, True)[1]
    context, dropped = attention.train()(hidden, bias, True)
    kept = dropped != 0
    assert 30 < kept.sum() < 114  # of 144
    torch.testing.assert_close(dropped[kept], 2 * plain[kept])
    torch.testing.assert_close(context[0], dropped[0, 0] @ hidden[0])


def test_encoder_outputs():
    model = encoder().eval()
    hidden, mask = torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)
    last = model(hidden, mask)
    assert len(last.layers) == 1 and last.attention is None
    everything = model(hidden, mask, all_layers=True, with_probs=True)
    assert len(everything.layers) == 3
    assert [p.shape for p in everything.attention] == [(2, 2, 5, 5)] * 3
    torch.testing.assert_close(everything.layers[-1], last.layers[0])
    # The second layer reads the first one's output.
    bias = torch.zeros(2, 1, 1, 5)
    torch.testing.assert_close(everything.layers[1], model.layer[1](everything.layers[0], bias)[0])
    # Post-norm: with a fresh LayerNorm each position has mean 0 and variance 1.
    torch.testing.assert_close(last.layers[0].mean(-1), torch.zeros(2, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(last.layers[0].var(-1, unbiased=False), torch.ones(2, 5))


@pytest.mark.parametrize("training", [False, True])
def test_without_padding_the_work_is_the_same(training):
    """States of real positions, and gradients of weights and of the input, are those of the padded computation."""
    torch.manual_seed(0)
    model = encoder(hidden_dropout=0.0, attention_dropout=0.0).train(training)
    mask = torch.tensor([[True] * 6, [True, True, False, False, False, False], [True, False, True, True, False, True]])
    found = []
    for packed in (True, False):
        model.packed = packed
        hidden = torch.linspace(-1, 1, 3 * 6 * 8).view(3, 6, 8).requires_grad_()
        out = model(hidden, mask, all_layers=True)
        out.layers[-1][mask].square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        found.append([hidden.grad[mask], *(layer[mask] for layer in out.layers), *gradients])
        assert [layer.shape for layer in out.layers] == [hidden.shape] * 3
        if packed:
            assert not out.layers[-1][~mask].any()
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_masked_positions_do_not_reach_the_others():
    model = encoder().eval()
    model.packed = False
    mask = torch.tensor([[True, True, False, True]])
    one, two = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    two[mask] = one[mask]
    for with_probs in (False, True):
        a, b = (model(x, mask, with_probs=with_probs).layers[-1] for x in (one, two))
        assert torch.equal(a[mask], b[mask])
        assert not torch.allclose(a[~mask], b[~mask])
        assert a.isfinite().all()


def test_one_layer_is_the_written_formula():
    layer = encoder(num_layers=1, hidden_act="relu").layer[0].eval()
    hidden, bias = torch.randn(1, 3, 8), torch.zeros(1, 1, 1, 3)
    context, _ = layer.attention.self(hidden, bias, False)
    attended = layer.attention.output.LayerNorm(layer.attention.output.dense(context) + hidden)
    inner = layer.intermediate.dense(attended).clamp(min=0)
    want = layer.output.LayerNorm(layer.output.dense(inner) + attended)
    torch.testing.assert_close(layer(hidden, bias)[0], want)


def test_bf16_autocast_computes_both_paths():
    model = encoder().eval()
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
    model = encoder(hidden_size=64, intermediate_size=128, hidden_act=act, hidden_dropout=0.0, attention_dropout=0.0)
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
    model, mask = encoder().eval(), torch.ones(2, 5, dtype=torch.bool)
    hidden = torch.randn(2, 5, 8)

    def run(model: Encoder) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return model(hidden, mask).layers[-1]

    before = run(model)
    assert torch.equal(run(model), before)
    other = encoder(num_layers=3).eval()
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


def test_bf16_rows_ask_for_no_gradient_of_the_rest():
    """Frozen weights stay without gradients."""
    model = encoder()
    for p in model.layer[0].parameters():
        p.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)).layers[-1].sum().backward()
    assert all(p.grad is None for p in model.layer[0].parameters())
    assert all(p.grad is not None for p in model.layer[1].parameters())


def test_pooler_reads_the_first_position():
    pooler = Pooler(2)
    nn.init.eye_(pooler.dense.weight)
    nn.init.zeros_(pooler.dense.bias)
    hidden = torch.tensor([[[0.5, -1.0], [9.0, 9.0]]])
    torch.testing.assert_close(pooler(hidden), torch.tensor([[math.tanh(0.5), math.tanh(-1.0)]]))


def test_head_transform_is_dense_activation_norm():
    transform = PredictionHeadTransform(2, "relu")
    nn.init.eye_(transform.dense.weight)
    nn.init.zeros_(transform.dense.bias)
    # relu(-5, 4) = (0, 4) -> (-1, 1)
    torch.testing.assert_close(transform(torch.tensor([[-5.0, 4.0]])), torch.tensor([[-1.0, 1.0]]))


def test_initial_weights():
    """Spec 02 §3.6."""
    torch.manual_seed(0)
    module = nn.ModuleList([nn.Linear(100, 200), nn.Embedding(200, 100), nn.LayerNorm(4)])
    for p in module.parameters():
        nn.init.constant_(p, 7.0)
    init_weights(module, 0.02)
    linear, embedding, norm = module
    for weight in (linear.weight, embedding.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert weight.mean().item() == pytest.approx(0.0, abs=1e-3)
    assert (linear.bias == 0).all() and (norm.bias == 0).all() and (norm.weight == 1).all()

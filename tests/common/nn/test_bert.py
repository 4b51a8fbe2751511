"""Original 2.1 to 2.3 and 2.11: building blocks, mask, initial weights."""

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


def test_attention_by_hand():
    hidden = torch.eye(4)[None, :3] * 2  # orthogonal: scores 4 / sqrt(4) = 2 with itself, 0 with the others
    bias = torch.tensor([0.0, 0.0, -10000.0]).view(1, 1, 1, 3)
    context, probs = identity_attention()(hidden, bias)
    e = math.exp(2)
    want = torch.tensor([[e, 1, 0], [1, e, 0], [1, 1, 0]]) / torch.tensor([[e + 1], [e + 1], [2]])
    torch.testing.assert_close(context[0], want @ hidden[0])
    assert probs.shape == (1, 1, 3, 3)
    torch.testing.assert_close(probs[0, 0], want)


def test_returned_probabilities_are_those_after_dropout():
    """Original 2.2: with dropout 0.5 each entry is 0 or twice its value."""
    torch.manual_seed(0)
    attention = identity_attention(0.5)
    hidden, bias = torch.randn(1, 12, 4), torch.zeros(1, 1, 1, 12)
    plain = attention(hidden, bias)[1]
    context, dropped = attention.train()(hidden, bias)
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


def test_masked_positions_do_not_reach_the_others():
    model = encoder().eval()
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
    context, _ = layer.attention.self(hidden, bias)
    attended = layer.attention.output.LayerNorm(layer.attention.output.dense(context) + hidden)
    inner = layer.intermediate.dense(attended).clamp(min=0)
    want = layer.output.LayerNorm(layer.output.dense(inner) + attended)
    torch.testing.assert_close(layer(hidden, bias)[0], want)


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
    """Original 2.11."""
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

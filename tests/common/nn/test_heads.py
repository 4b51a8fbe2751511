"""Original 2.13, 2.14 and 2.18: heads and classifiers."""

import math

import pytest
import torch
from torch import nn

from common.nn.heads import (
    MaskedLanguageHead,
    MaskedRegionHead,
    RegionHeadTransform,
    RelationshipHead,
    build_classifier,
)


def test_language_head_reads_the_word_table():
    words = nn.Embedding(3, 2)
    head = MaskedLanguageHead(words, "relu")
    assert head.predictions.decoder.weight is words.weight
    with torch.no_grad():
        words.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]))
        head.predictions.bias.copy_(torch.tensor([0.0, 0.5, 10.0]))
        nn.init.eye_(head.predictions.transform.dense.weight)
        nn.init.zeros_(head.predictions.transform.dense.bias)
    # (0, 4) -> relu, norm -> (-1, 1); times the rows, plus the bias
    torch.testing.assert_close(head(torch.tensor([[-3.0, 4.0]])), torch.tensor([[-1.0, 1.5, 10.0]]))
    # The bias comes first among the parameters: optimizer states count by position (original 2.17).
    assert next(n for n, _ in head.named_parameters()) == "predictions.bias"


def test_region_head_has_no_norm():
    transform = RegionHeadTransform(2, "relu")
    nn.init.eye_(transform.dense.weight)
    nn.init.zeros_(transform.dense.bias)
    assert transform(torch.tensor([[-3.0, 4.0]])).tolist() == [[0.0, 4.0]]
    head = MaskedRegionHead(4, "gelu", 7)
    assert head(torch.zeros(2, 5, 4)).shape == (2, 5, 7)
    assert list(head.state_dict()) == [
        f"{m}.{x}" for m in ("transform.dense", "region_cls_pred") for x in ("weight", "bias")
    ]


def test_relationship_head():
    assert RelationshipHead(4)(torch.zeros(3, 4)).shape == (3, 2)


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("1fc", {"1": (5, 8)}),
        ("2fc", {"1": (16, 8), "4": (5, 16)}),
        ("mlm", {"0.dense": (8, 8), "2": (5, 8)}),
    ],
)
def test_classifiers(kind, shapes):
    torch.manual_seed(0)
    classifier = build_classifier(kind, 8, 5, 16, 0.1)
    state = classifier.state_dict()
    found = {k.removesuffix(".weight"): tuple(v.shape) for k, v in state.items() if v.dim() == 2}
    assert found == shapes
    for name, (fan_out, fan_in) in shapes.items():
        bound = math.sqrt(6 / (fan_in + fan_out))  # Xavier uniform
        weight = state[f"{name}.weight"]
        assert 0.8 * bound < weight.abs().max() <= bound
        assert (state[f"{name}.bias"] == 0).all()
    assert classifier(torch.zeros(3, 8)).shape == (3, 5)


@pytest.mark.parametrize(("kind", "count"), [("1fc", 1), ("2fc", 2), ("mlm", 1)])
def test_dropout_of_the_classifier(kind, count):
    classifier = build_classifier(kind, 8, 5, 16, 0.3)
    assert [m.p for m in classifier if isinstance(m, nn.Dropout)] == [0.3] * count


def test_unknown_kind_raises():
    with pytest.raises(ValueError, match="CLASSIFIER_TYPE '3fc': expected 2fc, 1fc or mlm"):
        build_classifier("3fc", 8, 5, 16, 0.1)

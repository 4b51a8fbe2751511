"""The metrics of pretraining."""

from __future__ import annotations

import pytest
import torch

from pretrain.metrics import MLMAccuracy, MVRCAccuracy, RelationshipAccuracy
from tests.metrics import measured, one_hot


def test_relationship_accuracy():
    values = {"relationship_logits": one_hot(0, 1, classes=2), "relationship_label": torch.tensor([0, 0])}
    assert measured(RelationshipAccuracy(), **values) == (1, 2)


@pytest.mark.parametrize("part, name", [("", "MLMAcc"), ("wvc", "MLMAccWVC"), ("aux", "MLMAccAUX")])
def test_mlm_accuracy(part, name):
    metric = MLMAccuracy(part)
    suffix = f"_{part}" if part else ""
    values = {
        "mlm_logits" + suffix: one_hot(0, 1, 2, 3).view(2, 2, 4),
        "mlm_label" + suffix: torch.tensor([[0, -1], [1, 3]]),
    }
    assert metric.name == name
    assert measured(metric, **values) == (2, 3)


def test_mvrc_accuracy_counts_regions_with_a_distribution():
    label = torch.tensor([[[0.7, 0.35], [0.0, 0.0], [0.4, 0.6]]])
    values = {"mvrc_logits": one_hot(0, 1, 0, classes=2).view(1, 3, 2), "mvrc_label": label}
    assert measured(MVRCAccuracy(), **values) == (1, 2)

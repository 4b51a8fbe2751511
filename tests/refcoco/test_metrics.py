"""The metrics of referring expressions."""

from __future__ import annotations

import torch

from refcoco.metrics import ClsAccuracy, ClsPosAccuracy, ClsPosFraction, RefAccuracy
from tests.metrics import measured


def test_refcoco_metrics():
    values = {
        "label_logits": torch.tensor([[2.0, -1.0, -1.0, -9.0], [1.0, 3.0, -1.0, -9.0]]),
        "label": torch.tensor([[1.0, 0.0, 1.0, -1.0], [1.0, 0.0, 0.0, -1.0]]),  # -1: padding
    }
    assert measured(RefAccuracy(), **values) == (1, 2)
    assert measured(ClsAccuracy(), **values) == (4, 6)
    assert measured(ClsPosAccuracy(), **values) == (2, 3)
    assert measured(ClsPosFraction(), **values) == (3, 6)

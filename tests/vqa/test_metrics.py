"""The metric of VQA."""

from __future__ import annotations

import pytest
import torch

from tests.metrics import measured, one_hot
from vqa.metrics import SoftAccuracy


def test_soft_accuracy():
    label = torch.tensor([[0.3, 0.9, 0, 0], [0, 0.6, 0, 1.0]])
    assert measured(SoftAccuracy(), label_logits=one_hot(1, 0), label=label) == (pytest.approx(0.9), 2)

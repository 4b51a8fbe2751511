"""The metric of VQA. Alphabet: B batch, V answers."""

from __future__ import annotations

from torch import Tensor

from common.metrics import (
    Metric,
    Values,
    best_index,
    value_of,
)


class SoftAccuracy(Metric):
    """Mean of the soft label [B, V] of the answer with the highest logit."""

    def __init__(self, name: str = "SoftAcc") -> None:
        super().__init__(name)

    def measure(self, values: Values) -> tuple[Tensor, int]:
        label = value_of(values, "label")
        return label.gather(1, best_index(values, "label_logits")).sum(), len(label)

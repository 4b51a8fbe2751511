"""The metrics of referring expressions. Alphabet: B batch, R regions."""

from __future__ import annotations

from torch import Tensor

from common.metrics import (
    Metric,
    Values,
    best_index,
    hits,
    value_of,
)


class RefAccuracy(Metric):
    """Fraction of samples whose region with the highest logit of [B, R] has a label above 0.5."""

    def __init__(self, name: str = "RefAcc") -> None:
        super().__init__(name)

    def measure(self, values: Values) -> tuple[Tensor, int]:
        label = value_of(values, "label")
        return (label.gather(1, best_index(values, "label_logits")) > 0.5).sum(), len(label)


class ClsAccuracy(Metric):
    """Fraction of regions whose logit has the sign of their binary label; a negative label marks padding."""

    def __init__(self, name: str = "ClsAcc") -> None:
        super().__init__(name)

    def counted(self, label: Tensor) -> Tensor:
        return label >= 0

    def measure(self, values: Values) -> tuple[Tensor, Tensor]:
        label = value_of(values, "label").long()
        return hits((value_of(values, "label_logits") > 0).long() == label, self.counted(label))


class ClsPosAccuracy(ClsAccuracy):
    """Fraction of regions with label 1 whose logit is positive."""

    def __init__(self, name: str = "ClsPosAcc") -> None:
        super().__init__(name)

    def counted(self, label: Tensor) -> Tensor:
        return label == 1


class ClsPosFraction(Metric):
    """Fraction of regions with label 1 among those that are not padding."""

    def __init__(self, name: str = "ClsPosFrac") -> None:
        super().__init__(name)

    def measure(self, values: Values) -> tuple[Tensor, Tensor]:
        label = value_of(values, "label").long()
        return hits(label == 1, label >= 0)

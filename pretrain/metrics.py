"""The metrics of pretraining. Alphabet: B batch, R regions, T text tokens, V classes."""

from __future__ import annotations

from torch import Tensor

from common.metrics import (
    Metric,
    Values,
    hits,
    value_of,
)


class RelationshipAccuracy(Metric):
    """Fraction of samples for which the model predicts rightly whether caption and image belong together."""

    def __init__(self, name: str = "RelAcc") -> None:
        super().__init__(name)

    def measure(self, values: Values) -> tuple[Tensor, int]:
        label = value_of(values, "relationship_label")
        return (value_of(values, "relationship_logits").argmax(dim=1) == label).sum(), len(label)


class MLMAccuracy(Metric):
    """Fraction of masked words [B, T] that logits [B, T, V] predict; label -1 marks a word that is not masked.

    part: "" or "wvc" (captions) or "aux" (plain text) of the multitask model, whose names end in it.
    """

    def __init__(self, part: str = "") -> None:
        super().__init__("MLMAcc" + part.upper())
        self.suffix = f"_{part}" if part else ""

    def measure(self, values: Values) -> tuple[Tensor, Tensor]:
        label = value_of(values, "mlm_label" + self.suffix)
        return hits(value_of(values, "mlm_logits" + self.suffix).argmax(dim=-1) == label, label != -1)


class MVRCAccuracy(Metric):
    """Fraction of masked regions whose most probable class is predicted.

    The label [B, R, V] is a distribution, zeros where a region is not masked.
    """

    def __init__(self, name: str = "MVRCAccuracy") -> None:
        super().__init__(name)

    def measure(self, values: Values) -> tuple[Tensor, Tensor]:
        label = value_of(values, "mvrc_label")
        hit = value_of(values, "mvrc_logits").argmax(dim=-1) == label.argmax(dim=-1)
        return hits(hit, (label.sum(dim=-1) - 1).abs() < 0.1)

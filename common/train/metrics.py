"""Running metrics of all tasks: a sum and a count, kept on the device, added over ranks when they are read.

Alphabet: B batch, R regions, T text tokens, V classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common import distributed

Values = Mapping[str, Tensor]  # predictions, losses and targets of a batch by name


class Metric:
    """A mean over instances. Subclasses say in `measure` what a batch adds to the sum and to the count."""

    state: Tensor  # float64 [2]: sum and count of this rank, on the device of the last values

    def __init__(self, name: str) -> None:
        self.name = name
        self.reset()

    def measure(self, values: Values) -> tuple[Tensor, Tensor | int] | None:
        """(sum, count) of a batch; None to leave it out. Must not wait for the device."""
        raise NotImplementedError

    def update(self, values: Values) -> None:
        measured = self.measure(values)
        if measured is None:
            return
        total, count = measured
        self.state = self.state.to(total.device)
        self.state[0].add_(total)
        self.state[1].add_(count)

    def reset(self) -> None:
        # float64: a float32 count stops counting at 2**24.
        self.state = torch.zeros(2, dtype=torch.float64)

    def reduce(self) -> Tensor:
        """float64 [2], sum and count over all ranks. Every rank must call it, also one that has counted nothing."""
        return distributed.all_reduce_sum(self.state)

    def compute(self) -> float:
        """The mean over all ranks, NaN when there was nothing to count. Every rank must call it."""
        return _ratio(self.reduce().tolist())

    def state_dict(self) -> dict[str, float]:
        """Sum and count over all ranks; every rank must call it."""
        total, count = self.reduce().tolist()
        return {"sum": total, "count": count}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a saved state. It is the sum over ranks, so one rank holds it and the others start at zero."""
        self.reset()
        if distributed.is_main():
            self.state = torch.tensor([state["sum"], state["count"]], dtype=torch.float64)


class Mean(Metric):
    """Mean over updates of the mean of an output, for losses. An update without that output is left out.

    count_missing: count it as zero instead, as the original does.
    """

    def __init__(self, key: str, name: str | None = None, count_missing: bool = False) -> None:
        super().__init__(name or key)
        self.key = key
        self.count_missing = count_missing

    def measure(self, values: Values) -> tuple[Tensor, int] | None:
        if self.key in values:
            return values[self.key].detach().mean(dtype=torch.float32), 1
        return (torch.zeros((), device=self.state.device), 1) if self.count_missing else None


class SoftAccuracy(Metric):
    """VQA: the soft label [B, V] of the answer with the highest logit."""

    def __init__(self, name: str = "SoftAcc") -> None:
        super().__init__(name)

    def measure(self, values: Values) -> tuple[Tensor, int]:
        label = _get(values, "label")
        return label.gather(1, _best(values, "label_logits")).sum(), len(label)


class Accuracy(Metric):
    """Label [B] has the highest logit of [B, V]; rows with label -1 do not count.

    One-dimensional logits are rows of `choices`, and their labels are one-hot rows of the same shape.
    """

    def __init__(self, name: str = "Acc", choices: int = 4) -> None:
        super().__init__(name)
        self.choices = choices

    def measure(self, values: Values) -> tuple[Tensor, Tensor]:
        logits, label = _get(values, "label_logits"), _get(values, "label")
        if logits.dim() == 1:
            logits = logits.view(-1, self.choices)
            label = label.view(-1, self.choices).argmax(dim=1)
        return _hits(logits.argmax(dim=1) == label, label != -1)


class JointAccuracy(Metric):
    """VCR: answer and rationale both right."""

    def __init__(self, name: str = "JointAcc") -> None:
        super().__init__(name)

    def measure(self, values: Values) -> tuple[Tensor, int]:
        answer = _get(values, "answer_label_logits").argmax(dim=1) == _get(values, "answer_label")
        rationale = _get(values, "rationale_label_logits").argmax(dim=1) == _get(values, "rationale_label")
        return (answer & rationale).sum(), len(answer)


class RefAccuracy(Metric):
    """RefCOCO+: the region with the highest logit of [B, R] has a label above 0.5."""

    def __init__(self, name: str = "RefAcc") -> None:
        super().__init__(name)

    def measure(self, values: Values) -> tuple[Tensor, int]:
        label = _get(values, "label")
        return (label.gather(1, _best(values, "label_logits")) > 0.5).sum(), len(label)


class ClsAccuracy(Metric):
    """RefCOCO+: sign of the logit says the binary label of a region, over all regions with a label (not negative)."""

    def __init__(self, name: str = "ClsAcc") -> None:
        super().__init__(name)

    def counted(self, label: Tensor) -> Tensor:
        return label >= 0

    def measure(self, values: Values) -> tuple[Tensor, Tensor]:
        label = _get(values, "label").long()
        return _hits((_get(values, "label_logits") > 0).long() == label, self.counted(label))


class ClsPosAccuracy(ClsAccuracy):
    """The same over the regions with label 1."""

    def __init__(self, name: str = "ClsPosAcc") -> None:
        super().__init__(name)

    def counted(self, label: Tensor) -> Tensor:
        return label == 1


class ClsPosFraction(Metric):
    """RefCOCO+: fraction of regions with label 1 among those with a label."""

    def __init__(self, name: str = "ClsPosFrac") -> None:
        super().__init__(name)

    def measure(self, values: Values) -> tuple[Tensor, Tensor]:
        label = _get(values, "label").long()
        return _hits(label == 1, label >= 0)


class RelationshipAccuracy(Metric):
    """Pretraining: caption and image belong together or not."""

    def __init__(self, name: str = "RelAcc") -> None:
        super().__init__(name)

    def measure(self, values: Values) -> tuple[Tensor, int]:
        label = _get(values, "relationship_label")
        return (_get(values, "relationship_logits").argmax(dim=1) == label).sum(), len(label)


class MLMAccuracy(Metric):
    """Pretraining: masked words [B, T] found by logits [B, T, V]; label -1 is not masked.

    part: "" or "wvc" (captions) or "aux" (plain text) of the multitask model, whose names end in it.
    """

    def __init__(self, part: str = "") -> None:
        super().__init__("MLMAcc" + part.upper())
        self.suffix = f"_{part}" if part else ""

    def measure(self, values: Values) -> tuple[Tensor, Tensor]:
        label = _get(values, "mlm_label" + self.suffix)
        return _hits(_get(values, "mlm_logits" + self.suffix).argmax(dim=-1) == label, label != -1)


class MVRCAccuracy(Metric):
    """Pretraining: most probable class of masked regions; label [B, R, V] is a distribution, zeros where not masked."""

    def __init__(self, name: str = "MVRCAccuracy") -> None:
        super().__init__(name)

    def measure(self, values: Values) -> tuple[Tensor, Tensor]:
        label = _get(values, "mvrc_label")
        hit = _get(values, "mvrc_logits").argmax(dim=-1) == label.argmax(dim=-1)
        return _hits(hit, (label.sum(dim=-1) - 1).abs() < 0.1)


class MetricGroup:
    """Several metrics as one. Names must differ."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics = {metric.name: metric for metric in metrics}
        if len(self.metrics) < len(metrics):
            raise ValueError(f"metrics with the same name: {[metric.name for metric in metrics]}")

    def update(self, values: Values) -> None:
        for metric in self.metrics.values():
            metric.update(values)

    def reset(self) -> None:
        for metric in self.metrics.values():
            metric.reset()

    def compute(self) -> dict[str, float]:
        """Name -> mean over all ranks, in the order given, with one exchange. Every rank must call it."""
        return {name: _ratio(sums) for name, sums in self._reduced().items()}

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Sums and counts over all ranks; every rank must call it."""
        return {name: {"sum": total, "count": count} for name, (total, count) in self._reduced().items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Go on from a saved state; a metric that was not saved starts at zero."""
        self.reset()
        for name, metric in self.metrics.items():
            if name in state:
                metric.load_state_dict(state[name])

    def _reduced(self) -> dict[str, list[float]]:
        if not self.metrics:
            return {}
        states = [metric.state for metric in self.metrics.values()]
        device = next((state.device for state in states if state.device.type != "cpu"), states[0].device)
        total = distributed.all_reduce_sum(torch.stack([state.to(device) for state in states]))
        return dict(zip(self.metrics, total.tolist(), strict=True))


def _get(values: Values, key: str) -> Tensor:
    if key not in values:
        raise KeyError(f"a metric needs {key!r}, the batch and the model give {sorted(values)}")
    return values[key].detach()


def _best(values: Values, key: str) -> Tensor:
    """[B, 1] index of the highest logit."""
    return _get(values, key).argmax(dim=1, keepdim=True)


def _hits(hit: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the hits that count, and how many count. Sums of masks, since selecting by a mask waits for the device."""
    return (hit & counted).sum(), counted.sum()


def _ratio(sums: Sequence[float]) -> float:
    total, count = sums
    return total / count if count else math.nan

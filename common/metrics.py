"""Running metrics: a sum and a count, kept on the device and added over ranks when they are read.

Metrics of one task are in `<task>/metrics.py`. Alphabet: B batch, V classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from common import distributed

Values = Mapping[str, Tensor]  # predictions, losses and targets of a batch by name


class Metric:
    """A mean over instances. `measure` of a subclass returns what a batch adds to the sum and to the count."""

    state: Tensor  # float64 [2]: sum and count of this rank, on the device of the last values

    def __init__(self, name: str) -> None:
        self.name = name
        self.reset()

    def measure(self, values: Values) -> tuple[Tensor, Tensor | int] | None:
        """Returns (sum, count) of a batch, None to leave it out. Must not wait for the device."""
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
        """Returns float64 [2], sum and count over all ranks. Every rank must call it, also one that counted nothing."""
        return distributed.all_reduce_sum(self.state)

    def compute(self) -> float:
        """Returns the mean over all ranks, NaN where nothing was counted. Every rank must call it."""
        return _ratio(self.reduce().tolist())

    def state_dict(self) -> dict[str, float]:
        """Returns sum and count over all ranks. Every rank must call it."""
        total, count = self.reduce().tolist()
        return {"sum": total, "count": count}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continues from a saved state. It is the sum over ranks, so one rank holds it and the others start at zero."""
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


class Accuracy(Metric):
    """Label [B] has the highest logit of [B, V]; rows with label -1 do not count.

    One-dimensional logits are rows of `choices`, and their labels are one-hot rows of the same shape.
    """

    def __init__(self, name: str = "Acc", choices: int = 4) -> None:
        super().__init__(name)
        self.choices = choices

    def measure(self, values: Values) -> tuple[Tensor, Tensor]:
        logits, label = value_of(values, "label_logits"), value_of(values, "label")
        if logits.dim() == 1:
            logits = logits.view(-1, self.choices)
            label = label.view(-1, self.choices).argmax(dim=1)
        return hits(logits.argmax(dim=1) == label, label != -1)


class MetricGroup:
    """Several metrics as one. Raises ValueError for equal names."""

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
        """Returns name -> mean over all ranks, in the given order, with one exchange. Every rank must call it."""
        return {name: _ratio(sums) for name, sums in self._reduced().items()}

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Returns sums and counts over all ranks. Every rank must call it."""
        return {name: {"sum": total, "count": count} for name, (total, count) in self._reduced().items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Continues from a saved state. A metric that was not saved starts at zero."""
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


def loss_means(loggers: Sequence[tuple[str, str]]) -> list[Mean]:
    """Returns a Mean for each (output, name) of TRAIN.LOSS_LOGGERS."""
    return [Mean(output, name) for output, name in loggers]


def value_of(values: Values, key: str) -> Tensor:
    """Returns a detached value. Raises KeyError, with the names that exist, for a missing one."""
    if key not in values:
        raise KeyError(f"a metric needs {key!r}, the batch and the model have {sorted(values)}")
    return values[key].detach()


def best_index(values: Values, key: str) -> Tensor:
    """Returns [B, 1], the index of the highest logit of [B, V]."""
    return value_of(values, key).argmax(dim=1, keepdim=True)


def hits(hit: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sum of the hits that count, and how many count; both are masks of the same shape.

    These are sums of masks, because a selection by a mask waits for the device.
    """
    return (hit & counted).sum(), counted.sum()


def _ratio(sums: Sequence[float]) -> float:
    total, count = sums
    return total / count if count else math.nan

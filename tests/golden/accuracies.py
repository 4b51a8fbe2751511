"""Accuracies of training runs, whose smallest difference is a sample.

A sample whose two best scores are nearly equal may be decided either way. Only such samples may differ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from common.metrics import (
    Accuracy,
    Mean,
    Metric,
    MetricGroup,
)
from refcoco.metrics import ClsAccuracy
from tests.golden.core import Report

NEAR_ATOL, NEAR_RTOL = 1e-4, 1e-4  # two scores within this are nearly equal: rounding can change their order
EXACT = 1e-5  # accuracies that differ by less are equal: the stored ones are float32


class Accuracies:
    """Compares the metrics of a run with the stored ones at each iteration, and reports each difference once."""

    def __init__(self, metrics: MetricGroup, report: Report) -> None:
        self.metrics, self.report = metrics, report
        self.reset()

    def reset(self) -> None:
        """Start an epoch."""
        self.metrics.reset()
        self.near: Counter[str] = Counter()  # samples since the reset whose decision is near, by metric
        self.reported: dict[str, float] = {}

    def update(self, values: Mapping[str, Tensor]) -> None:
        self.metrics.update(values)
        for name, metric in self.metrics.metrics.items():
            self.near[name] += near_decisions(metric, values)

    def compare(self, step: int, wanted: Mapping[str, float | None]) -> None:
        """wanted: the stored metrics, None where nothing was counted. Losses are compared as numbers."""
        saved, got = self.metrics.state_dict(), self.metrics.compute()
        for name, stored in wanted.items():
            want = math.nan if stored is None else stored
            if isinstance(self.metrics.metrics[name], Mean) or math.isnan(want) or math.isnan(got[name]):
                self.report.close(f"metric {name} at {step}", got[name], want, 1e-5, 1e-4)
            else:
                self._compare_accuracy(name, step, abs(got[name] - want), saved[name]["count"])

    def _compare_accuracy(self, name: str, step: int, difference: float, count: float) -> None:
        self.report.comparisons += 1
        samples = round(difference * count, 3)
        if difference <= EXACT or self.reported.get(name) == samples:
            return
        self.reported[name] = samples
        near = self.near[name]
        text = f"differs by {samples:g} of {count:g} samples, {near} of which have two best scores that nearly tie"
        if samples <= near:
            self.report.note(f"metric {name} at {step}: {text}")
        else:
            self.report.fail(f"metric {name} at {step}", text)


def near_decisions(metric: Metric, values: Mapping[str, Tensor]) -> int:
    """The number of samples of a batch for which `metric` decides by scores that are nearly equal."""
    read = _Reads(values)
    metric.measure(read)
    return sum(int(_near(metric, values, key).sum()) for key in read.keys_read if "logits" in key)


def _near(metric: Metric, values: Mapping[str, Tensor], key: str) -> Tensor:
    """Bool, whether the decision about each sample is near."""
    scores = values[key].detach()
    if isinstance(metric, ClsAccuracy):  # decides by the sign of each score
        return (scores.abs() <= NEAR_ATOL) & metric.counted(values["label"].long())
    if isinstance(metric, Accuracy) and scores.dim() == 1:
        scores = scores.view(-1, metric.choices)
    if scores.shape[-1] < 2:
        return torch.zeros(0, dtype=torch.bool)
    best, second = scores.topk(2, dim=-1).values.unbind(-1)
    return best - second <= NEAR_ATOL + NEAR_RTOL * best.abs()


class _Reads(dict[str, Tensor]):
    """Values that remember which of them were read."""

    def __init__(self, values: Iterable | Mapping[str, Tensor]) -> None:
        super().__init__(values)
        self.keys_read: list[str] = []

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.keys_read:
            self.keys_read.append(key)
        return super().__getitem__(key)

"""The metrics case of group G."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

import pretrain.metrics
import refcoco.metrics
import vqa.metrics
from common import metrics
from common.metrics import Mean, Metric, MetricGroup
from tests.golden.core import Case, Report

TOLERANCE = {"atol": 1e-6, "rtol": 0.0}

# Class of the original -> ours, where that is not the class of the same name. All loss means of the original count
# an update in which their output is missing; ours leave it out unless asked.
RENAMED: dict[str, Callable[..., Metric]] = {
    "LossLogger": lambda *args: Mean(*args, count_missing=True),
    "AnsLoss": lambda: Mean("ans_loss", "AnsLoss", count_missing=True),
    "CNNRegLoss": lambda: Mean("cnn_regularization_loss", "CNNRegLoss", count_missing=True),
    "PositiveFraction": lambda: Mean("positive_fraction", "PosFraction", count_missing=True),
    "MLMAccuracyWVC": lambda: pretrain.metrics.MLMAccuracy("wvc"),
    "MLMAccuracyAUX": lambda: pretrain.metrics.MLMAccuracy("aux"),
}


MODULES = (metrics, vqa.metrics, refcoco.metrics, pretrain.metrics)
# Of the original's classes for answer and rationale at once, which no configuration of it uses.
ABSENT = ("JointAccuracy",)


def run(case: Case, report: Report) -> None:
    """Each metric before any update and after each one; then some of them as a group."""
    for row in case.json["metrics"]:
        if row["class"] in ABSENT:
            report.note(f"not ported: {row['class']}")
            continue
        metric = _build(row)
        label = f"{row['class']} of {row['input_group']}"
        report.equal(f"{label} name", metric.name, row["name"])
        for k, want in enumerate(row["values"]):
            if k > 0:
                metric.update(_outputs(case, k - 1, row["input_group"]))
            report.close(f"{label} after {k}", metric.compute(), math.nan if want is None else want, **TOLERANCE)
        # The sums are float32 in the original, so a larger one is as exact as its size allows.
        saved = metric.state_dict()
        report.close(f"{label} sum", saved["sum"], row["sum_metric"], atol=1e-6, rtol=1e-6)
        report.equal(f"{label} count", saved["count"], row["num_inst"])
    _check_group(case, report)


def _check_group(case: Case, report: Report) -> None:
    want = case.json["composite"]
    rows = [next(row for row in case.json["metrics"] if row["name"] == name) for name in want["names"]]
    group = MetricGroup([_build(row) for row in rows])
    for k in range(len(rows[0]["values"]) - 1):
        group.update(_outputs(case, k, rows[0]["input_group"]))
    values = group.compute()
    report.equal("composite names", list(values), want["names"])
    report.close("composite values", list(values.values()), want["values"], **TOLERANCE)


def _build(row: dict) -> Metric:
    name = row["class"]
    build = RENAMED.get(name) or next(getattr(module, name) for module in MODULES if hasattr(module, name))
    return build(*row["args"])


def _outputs(case: Case, update: int, group: str) -> dict[str, Tensor]:
    """The outputs dict of one update of a group of metrics."""
    prefix = f"u{update}.{group}."
    return {
        name.removeprefix(prefix): t for name, t in case.tensors().items() if name.startswith(prefix) and t is not None
    }

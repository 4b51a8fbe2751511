"""Values for tests of metrics."""

from __future__ import annotations

import torch

from common.metrics import Metric


def one_hot(*best: int, classes: int = 4) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(best), classes).float()


def measured(metric: Metric, **values: torch.Tensor) -> tuple[float, float]:
    """Sum and count of one update."""
    metric.update(values)
    state = metric.state_dict()
    return state["sum"], state["count"]

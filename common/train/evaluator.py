"""The loop without gradients: metrics over a split, and one record for each of its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from common import distributed
from common.data.loader import Loader
from common.data.sample import Batch, ModelOutput
from common.precision import Precision
from common.train.metrics import MetricGroup

Record = dict[str, Any]


class Interrupted(Exception):  # noqa: N818 - a request to stop, not an error
    """Evaluation was asked to stop."""


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, the mode of before afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def evaluate(
    model: nn.Module,
    loader: Loader,
    device: torch.device,
    precision: Precision,
    metrics: MetricGroup | None = None,
    to_records: Callable[[ModelOutput, Batch], list[Record]] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    title: str = "evaluate",
) -> tuple[dict[str, float], list[Record]]:
    """Run `model` over `loader` once.

    Returns the metrics by name, reduced over all ranks, and the records of `to_records` in the order of the dataset (on
    rank 0; other ranks get an empty list). Raises Interrupted when `should_stop` says so.
    """
    records: list[Record] = []
    stopped = False
    if metrics is not None:
        metrics.reset()
    batches = tqdm(loader, title, disable=None if distributed.is_main() else True, leave=False)
    with evaluation_mode(model), torch.inference_mode():
        for batch in batches:
            stopped = should_stop()
            if stopped:
                break
            batch = batch.to(device)
            with precision.autocast():
                output = model(batch)
            if metrics is not None:
                metrics.update(output.values(batch.targets))
            if to_records is not None:
                records += to_records(output, batch)
    if distributed.any_rank(
        stopped
    ):  # asked by all: the others may not have got the signal, and would wait for this one
        raise Interrupted
    return metrics.compute() if metrics is not None else {}, _gathered(records)


def _gathered(records: list[Record]) -> list[Record]:
    """Records of all ranks on rank 0. Ranks hold contiguous parts of the dataset, so joining them keeps its order."""
    parts = distributed.gather_objects(records)
    return [record for part in parts for record in part] if parts is not None else []

"""The evaluation loop: metrics over a split, and records of its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from common import distributed
from common.data.copies import DeviceCopies
from common.data.loader import Loader
from common.data.sample import Batch, ModelOutput
from common.metrics import MetricGroup
from common.precision import Precision

Record = dict[str, Any]


class Interrupted(Exception):  # noqa: N818 - a request to stop, not an error
    """Evaluation ended early because `should_stop` returned True."""


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context in which `model` is in eval mode. Its mode is restored at the end."""
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
    """Run `model` over `loader` once, in eval mode and without gradients.

    Returns the metrics by name, reduced over all ranks, and on rank 0 the records of `to_records` from all ranks, in
    the order of rank and batch. Other ranks return an empty list.
    Raises Interrupted on all ranks after `should_stop` returned True on one of them.
    """
    records: list[Record] = []
    to_device = DeviceCopies(device)
    stopped = False
    if metrics is not None:
        metrics.reset()
    batches = tqdm(loader, title, disable=None if distributed.is_main() else True, leave=False)
    with evaluation_mode(model), torch.inference_mode():
        distributed.doing(f"{title}: reading batch 0")
        for number, batch in enumerate(batches):
            if number == 1:  # the first one starts the workers and the device
                distributed.started_up()
            distributed.doing(f"{title}: batch {number}, then reading the next one")
            stopped = should_stop()
            if stopped:
                break
            batch = to_device(batch)
            with precision.autocast():
                output = model(batch)
            if metrics is not None:
                metrics.update(output.values(batch.targets))
            if to_records is not None:
                records += to_records(output, batch)
    distributed.doing(f"{title}: gathering results")
    if distributed.any_rank(stopped):  # every rank must call this: only some of them may have stopped
        raise Interrupted
    return metrics.compute() if metrics is not None else {}, _gathered(records)


def _gathered(records: list[Record]) -> list[Record]:
    """Records of all ranks, by rank, on rank 0; an empty list on the others."""
    parts = distributed.gather_objects(records)
    return [record for part in parts for record in part] if parts is not None else []

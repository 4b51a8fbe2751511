"""Outputs of VCR: metrics, and the table of probabilities for the leaderboard (original 8.19 and 8.21)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.config import Config
from common.data.sample import Batch, ModelOutput
from common.errors import DataError
from common.files.atomic import save_array
from common.metrics import Accuracy, MetricGroup, loss_means
from common.task import Record
from vcr.annotations import NUM_CHOICES
from vcr.dataset import VCRDataset
from vcr.result_table import write_table


def build_metrics(cfg: Config, training: bool) -> MetricGroup:
    """Returns Acc, and in training the losses of TRAIN.LOSS_LOGGERS."""
    return MetricGroup([Accuracy(), *(loss_means(cfg.TRAIN.LOSS_LOGGERS) if training else [])])


def to_records(output: ModelOutput, batch: Batch, dataset: VCRDataset) -> list[Record]:
    """Returns {"id": annot_id, "logits": 4 numbers, or 16 for QA2R without labels} for each sample."""
    logits = output.predictions["label_logits"].float().tolist()
    return [{"id": i, "logits": row} for i, row in zip(batch.ids, logits, strict=True)]


def logits_in_order(records: Sequence[Record], ids: Sequence[str]) -> Tensor:
    """Returns float32 [n, 4 or 16], the logits of each annotation of `ids`.

    Raises DataError when the records are not exactly these annotations.
    """
    logits = {record["id"]: record["logits"] for record in records}
    if len(logits) != len(records) or logits.keys() != set(ids):
        raise DataError(f"{len(records)} records, {len(logits)} of them distinct, for {len(ids)} annotations")
    return torch.tensor([logits[i] for i in ids])


def write_results(records: Sequence[Record], dataset: VCRDataset, path: Path) -> None:
    """Writes the probabilities over each four choices as a table in the order of the annotations, and a .npy beside it.

    Raises DataError when the records are not exactly the annotations of the dataset.
    """
    logits = logits_in_order(records, dataset.ids)
    probabilities = logits.unflatten(1, (-1, NUM_CHOICES)).softmax(-1).flatten(1).numpy()
    # str of a float32 is the shortest decimal that parses to the same number.
    rows = [[i, *map(str, row)] for i, row in zip(dataset.ids, probabilities, strict=True)]
    write_table(dataset.task, rows, path)
    save_array(path.with_suffix(".npy"), probabilities)


def result_name(cfg: Config, stem: str) -> str:
    return f"{stem}_test_result_{cfg.DATASET.TASK}.csv"

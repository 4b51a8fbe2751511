"""Outputs of VQA: metrics, and the result file of the evaluation server (original 9.20 and 9.21)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from common.config import Config
from common.data.sample import Batch, ModelOutput
from common.errors import DataError
from common.files.atomic import write_text
from common.metrics import MetricGroup, loss_means
from common.task import Record
from vqa.dataset import VQADataset
from vqa.metrics import SoftAccuracy


def build_metrics(cfg: Config, training: bool) -> MetricGroup:
    """Returns SoftAcc, and in training the losses of TRAIN.LOSS_LOGGERS."""
    return MetricGroup([SoftAccuracy(), *(loss_means(cfg.TRAIN.LOSS_LOGGERS) if training else [])])


def to_records(output: ModelOutput, batch: Batch, dataset: VQADataset) -> list[Record]:
    """Returns {"id": question id, "answer": string of the best logit} for each sample."""
    best = output.predictions["label_logits"].argmax(1).tolist()
    answers = dataset.vocabulary.answers
    return [{"id": i, "answer": answers[k]} for i, k in zip(batch.ids, best, strict=True)]


def write_answers(records: Sequence[Record], dataset: VQADataset, path: Path) -> None:
    """Writes the JSON list that the VQA server takes, in the order of the question file.

    Raises DataError when the records are not exactly the questions of the dataset.
    """
    answers = {record["id"]: record["answer"] for record in records}
    questions = [q.question_id for q in dataset.questions]
    if len(answers) != len(records) or answers.keys() != set(questions):
        raise DataError(f"{len(records)} records, {len(answers)} of them distinct, for {len(questions)} questions")
    write_text(path, json.dumps([{"question_id": i, "answer": answers[i]} for i in questions]))


def result_name(cfg: Config, stem: str) -> str:
    return f"{stem}_vqa2_{cfg.DATASET.TEST_IMAGE_SET}.json"

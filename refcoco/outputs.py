"""Outputs of RefCOCO+: metrics, the result file, and three counts of right predictions (original 10.12 and 10.13)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.boxes import iou
from common.config import Config
from common.data.sample import Batch, ModelOutput
from common.errors import DataError
from common.files.atomic import write_text
from common.metrics import Metric, MetricGroup, loss_means
from common.task import Record
from refcoco.dataset import Expression, RefCOCODataset
from refcoco.metrics import ClsAccuracy, ClsPosAccuracy, ClsPosFraction, RefAccuracy

CORRECT_IOU = 0.5  # IoU from which a box is right


def build_metrics(cfg: Config, training: bool) -> MetricGroup:
    """Returns RefAcc, and in training the accuracies over candidates and the losses of TRAIN.LOSS_LOGGERS."""
    metrics: list[Metric] = [RefAccuracy()]
    if training:
        metrics += [ClsAccuracy(), ClsPosAccuracy(), ClsPosFraction(), *loss_means(cfg.TRAIN.LOSS_LOGGERS)]
    return MetricGroup(metrics)


def to_records(output: ModelOutput, batch: Batch, dataset: RefCOCODataset) -> list[Record]:
    """Returns for each sample the candidate with the highest score, as JSON-able values.

    id: sentence. box: xyxy in pixels of the original image. candidate: its row of the sample's boxes. score: its
    probability, in [0, 1].
    """
    logits = output.predictions["label_logits"].float()
    scores, best = logits.sigmoid().max(1).values.tolist(), logits.argmax(1).tolist()
    boxes = output.predictions["pred_boxes"].float().tolist()
    rows = zip(batch.ids, boxes, best, scores, strict=True)
    return [{"id": i, "box": box, "candidate": k, "score": score} for i, box, k, score in rows]


def write_boxes(records: Sequence[Record], dataset: RefCOCODataset, path: Path) -> None:
    """Writes a JSON list with an entry {ref_id, box, sent_id} per expression, in the order of the dataset.

    Raises DataError when the records are not exactly the expressions of the dataset.
    """
    ordered = _by_expression(records, dataset)
    entries = [
        {"ref_id": e.ref_id, "box": record["box"], "sent_id": e.sent_id}
        for e, record in zip(dataset.expressions, ordered, strict=True)
    ]
    write_text(path, json.dumps(entries))


def result_stem(cfg: Config, yaml_stem: str) -> str:
    return cfg.MODEL_PREFIX or yaml_stem


def result_name(cfg: Config, stem: str) -> str:
    return f"{stem}_{cfg.DATASET.DATASET or 'refcoco+'}_{cfg.DATASET.TEST_IMAGE_SET}.json"


# ---------------------------------------------------------------------------------------------- counting what is right


@dataclass(frozen=True)
class Accuracies:
    """The number of `expressions` that are right, counted in three ways.

    overlap: the chosen box has IoU >= 0.5 with the target box, as the original counts (original 10.13).
    exact: the chosen box is the target. With box mode gt it is the target annotation itself; otherwise the overlap is
    reached and no other annotation of the image overlaps the chosen box more.
    ceiling: some candidate has IoU >= 0.5 with the target, so that the overlap could be reached.
    """

    expressions: int
    overlap: int
    exact: int
    ceiling: int


def count_correct(records: Sequence[Record], dataset: RefCOCODataset) -> Accuracies:
    """Compares records of `to_records` with the annotations of the dataset, of any split.

    Raises DataError when the records are not exactly the expressions of the dataset.
    """
    overlap = exact = ceiling = 0
    for index, record in enumerate(_by_expression(records, dataset)):
        expression, choices = dataset.expressions[index], dataset.choices(index)
        target = torch.tensor([expression.box], dtype=torch.float64)
        box = torch.tensor([record["box"]], dtype=torch.float64)
        reached = bool(iou(box, target) >= CORRECT_IOU)
        overlap += reached
        if dataset.boxes == "gt":
            # In a batch with more boxes a padded one may have been chosen (NETWORK.SCORE_PADDING).
            chosen = record["candidate"]
            exact += chosen < len(choices.ann_ids) and choices.ann_ids[chosen] == expression.ann_id
        else:
            exact += reached and _is_nearest(box, target, expression, dataset)
        ceiling += bool((iou(choices.boxes.double(), target) >= CORRECT_IOU).any())
    return Accuracies(len(dataset), overlap, exact, ceiling)


def accuracies(records: Sequence[Record], dataset: RefCOCODataset) -> dict[str, float]:
    """Returns `count_correct` as a dict: "expressions", a count, and "overlap", "exact", "ceiling" in percent of it."""
    counts = asdict(count_correct(records, dataset))
    total = counts.pop("expressions")
    return {"expressions": total, **{name: 100 * count / total for name, count in counts.items()}}


def summary(records: Sequence[Record], dataset: RefCOCODataset) -> str:
    """Returns a table of the three counts, in percent with two decimals."""
    counts = count_correct(records, dataset)
    rows = [
        ("chosen box has IoU >= 0.5 (the original's accuracy)", counts.overlap),
        ("chosen box is the target itself", counts.exact),
        ("some candidate has IoU >= 0.5 (ceiling)", counts.ceiling),
    ]
    title = f"{dataset.name} {dataset.image_sets}, candidates {dataset.boxes}"
    width = max(len(title), *(len(name) for name, _ in rows))
    lines = [f"{title:<{width}}  {'percent':>7}  expressions"]
    for name, count in rows:
        lines.append(f"{name:<{width}}  {100 * count / counts.expressions:>7.2f}  {count} of {counts.expressions}")
    return "\n".join(lines)


def _is_nearest(box: Tensor, target: Tensor, expression: Expression, dataset: RefCOCODataset) -> bool:
    """Returns whether no annotation of the image overlaps `box` more than `target` does. Both are float64 [1, 4]."""
    image = dataset.images[expression.image_id]
    overlaps = iou(image.boxes, box)[:, 0]
    if expression.ann_id in image.ann_ids:
        own = overlaps[image.ann_ids.index(expression.ann_id)]
    else:  # the COCO file lacks the target
        own = iou(target, box)[0, 0]
    return bool((own >= overlaps).all())


def _by_expression(records: Sequence[Record], dataset: RefCOCODataset) -> list[Record]:
    """Returns the records in the order of the expressions."""
    by_id = {record["id"]: record for record in records}
    sent_ids = [e.sent_id for e in dataset.expressions]
    if len(by_id) != len(records) or by_id.keys() != set(sent_ids):
        raise DataError(f"{len(records)} records, {len(by_id)} of them distinct, for {len(sent_ids)} expressions")
    return [by_id[i] for i in sent_ids]

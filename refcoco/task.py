"""Referring expressions as a task (paper §4.2.3)."""

from __future__ import annotations

from common.task import Task
from refcoco.dataset import build_dataset
from refcoco.made_up import MADE_UP
from refcoco.module import build_model
from refcoco.outputs import build_metrics, result_name, result_stem, summary, to_records, write_boxes
from refcoco.predictor import ReferringPredictor

TASK = Task(
    name="refcoco",
    modules={"ResNetVLBERT": build_model},
    build_dataset=build_dataset,
    build_metrics=build_metrics,
    main_metric=lambda cfg: "RefAcc",
    to_records=to_records,
    write_results=write_boxes,
    result_name=result_name,
    result_stem=result_stem,
    summary=summary,
    predictor=ReferringPredictor,
    made_up=MADE_UP,
    loss_scale_range=(128.0, None),
)

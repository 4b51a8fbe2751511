"""Pretraining as a task (paper §3.3)."""

from __future__ import annotations

from common.task import Task
from pretrain.dataset import build_dataset
from pretrain.deep_check import deep_checks
from pretrain.keys import ATTENTION_VIS, MULTITASK, SINGLE
from pretrain.made_up import MADE_UP
from pretrain.module import build_attention_vis, build_multitask, build_single
from pretrain.outputs import build_metrics, main_metric
from pretrain.predictor import CaptionPredictor

TASK = Task(
    name="pretrain",
    modules={
        MULTITASK: build_multitask,
        SINGLE: build_single,
        ATTENTION_VIS: build_attention_vis,
    },
    build_dataset=build_dataset,
    build_metrics=build_metrics,
    main_metric=main_metric,
    has_results=False,
    predictor=CaptionPredictor,
    made_up=MADE_UP,
    deep_checks=deep_checks,
    loss_scale_range=(128.0, 128.0),
)

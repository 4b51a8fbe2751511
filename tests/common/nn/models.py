"""Tiny models of every task, with the fast path and without it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from common.config import Config, load_config
from common.data.sample import Batch
from common.task import load_task
from tests.made_up import made_up_batch
from tests.paths import ROOT

# A config of each task; some read pixels, some have precomputed features.
FILES = {
    "vqa": "vqa/base_4x16G_fp32.yaml",
    "vcr": "vcr/base_q2a_4x16G_fp32.yaml",
    "refcoco": "refcoco/base_gt_boxes_4x16G.yaml",
    "pretrain": "pretrain/base_prec_4x16G_fp32.yaml",
}
HIDDEN = 16
TINY = {
    "DEVICE": "cpu",
    "SCALES": [32, 48],
    "NETWORK.IMAGE_NUM_LAYERS": 50,
    "NETWORK.IMAGE_FINAL_DIM": HIDDEN,
    "NETWORK.VLBERT.hidden_size": HIDDEN,
    "NETWORK.VLBERT.visual_size": HIDDEN,
    "NETWORK.VLBERT.num_hidden_layers": 2,
    "NETWORK.VLBERT.num_attention_heads": 2,
    "NETWORK.VLBERT.intermediate_size": 32,
    "NETWORK.VLBERT.vocab_size": 60,
    "NETWORK.VLBERT.visual_scale_text_init": 1.0,
    "NETWORK.VLBERT.visual_scale_object_init": 1.0,
}


def tiny_config(task: str, fast: bool, **network: Any) -> Config:
    changes = {f"NETWORK.{key}": value for key, value in network.items()}
    return load_config(task, ROOT / "cfgs" / FILES[task], TINY | changes | {"NETWORK.FAST_PATH": fast})


def tiny_model(task: str, fast: bool, **network: Any) -> nn.Module:
    """The same weights with and without the fast path, wide enough apart that outputs differ, and no dropout."""
    torch.manual_seed(0)
    model = load_task(task).build_model(tiny_config(task, fast, **network))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    return model


def tiny_batch(task: str, targets: bool = True, samples: int = 4) -> Batch:
    """Samples of different lengths."""
    return made_up_batch(task, tiny_config(task, True), samples, words=7, boxes=5, targets=targets)

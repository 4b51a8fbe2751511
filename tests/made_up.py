"""Made-up batches by the name of a task, and small configs for them."""

from __future__ import annotations

from typing import Any

from common.config import Config, load_config
from common.data import synthetic
from common.data.sample import Batch
from common.task import load_task
from tests.paths import ROOT

FILES = {
    "pretrain": "pretrain/base_prec_4x16G_fp32.yaml",
    "vqa": "vqa/base_4x16G_fp32.yaml",
    "vcr": "vcr/base_q2a_4x16G_fp32.yaml",
    "refcoco": "refcoco/base_gt_boxes_4x16G.yaml",
}
TINY = {
    "SCALES": [32, 48],
    "NETWORK.IMAGE_NUM_LAYERS": 50,
    "NETWORK.IMAGE_FINAL_DIM": 8,
    "NETWORK.VLBERT.hidden_size": 8,
    "NETWORK.VLBERT.visual_size": 8,
    "NETWORK.VLBERT.num_hidden_layers": 1,
    "NETWORK.VLBERT.num_attention_heads": 2,
    "NETWORK.VLBERT.intermediate_size": 16,
}


def config(task: str, changes: dict[str, Any] | None = None) -> Config:
    return load_config(task, ROOT / "cfgs" / FILES[task], TINY | (changes or {}))


def made_up_batch(task: str, cfg: Config, *args: Any, **sizes: Any) -> Batch:
    """`common.data.synthetic.made_up_batch` of the samples of a task."""
    return synthetic.made_up_batch(load_task(task).made_up, cfg, *args, **sizes)

"""Small models of every task on region features and on pixels. The number of waits does not depend on sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PRECISIONS = ("fp32", "bf16", "fp16")
SIZES = {"samples": 2, "words": 8, "boxes": 6}
TINY = {
    "SCALES": [32, 48],
    "NETWORK.PARTIAL_PRETRAIN": "",
    "NETWORK.IMAGE_NUM_LAYERS": 50,
    "NETWORK.IMAGE_FINAL_DIM": 32,
    "NETWORK.VLBERT.vocab_size": 2000,
    "NETWORK.VLBERT.hidden_size": 32,
    "NETWORK.VLBERT.visual_size": 32,
    "NETWORK.VLBERT.num_hidden_layers": 2,
    "NETWORK.VLBERT.num_attention_heads": 2,
    "NETWORK.VLBERT.intermediate_size": 64,
}
ONE_SET, TWO_SETS = {"TRAIN.BATCH_IMAGES": 2}, {"TRAIN.BATCH_IMAGES": [2, 2]}
ANSWERS = ONE_SET | {"DATASET.ANSWER_VOCAB_SIZE": 20}
CLASSES = TWO_SETS | {"NETWORK.VLBERT.visual_region_classes": 30}
PIXELS = {"NETWORK.IMAGE_FEAT_PRECOMPUTED": False}


@dataclass(frozen=True)
class Form:
    """A task with its shipped config, made small.

    values: whether numbers are compared too, for which the CPU computes everything.
    """

    task: str
    cfg: str
    changes: dict[str, Any] = field(default_factory=dict)
    values: bool = True

    @property
    def settings(self) -> dict[str, Any]:
        return TINY | self.changes


FORMS = {
    "vqa features": Form("vqa", "vqa/base_4x16G_fp32.yaml", ANSWERS),
    "vqa pixels": Form("vqa", "vqa/base_4x16G_fp32.yaml", ANSWERS | PIXELS, values=False),
    "vcr pixels": Form("vcr", "vcr/base_q2a_4x16G_fp32.yaml", ONE_SET),
    "refcoco pixels": Form("refcoco", "refcoco/base_detected_regions_4x16G.yaml", ONE_SET),
    "pretrain features": Form("pretrain", "pretrain/base_prec_4x16G_fp32.yaml", CLASSES),
    "pretrain pixels": Form("pretrain", "pretrain/base_e2e_16x16G_fp16.yaml", CLASSES, values=False),
}

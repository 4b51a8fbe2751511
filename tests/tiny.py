"""Settings of tiny runs on a made-up world: a shipped config, so small that two epochs take seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from data.scenes.questions import ANSWERS
from tests.paths import ROOT

QUESTION = "what color is the big circle?"  # in the words of the made-up world


def tiny_settings(base: str, world: Path, out: Path) -> dict[str, Any]:
    """The settings that all tasks share. base: a YAML under cfgs. The caller adds its DATASET."""
    return {
        "_BASE_": str(ROOT / "cfgs" / base),
        "RNG_SEED": 5,
        "OUTPUT_PATH": str(out),
        "GPUS": "0",
        "DEVICE": "cpu",
        "LOG_FREQUENT": 1,
        "MODEL_PREFIX": "tiny",
        "NUM_WORKERS_PER_GPU": 1,
        "DATASET": {"DATASET_PATH": str(world)},
        "NETWORK": {
            "PARTIAL_PRETRAIN": "",
            "BERT_MODEL_NAME": str(world / "bert"),
            "BERT_RANDOM_INIT": True,
            "IMAGE_FINAL_DIM": 24,
            "VLBERT": {
                "vocab_size": len((world / "bert/vocab.txt").read_text().splitlines()),
                "hidden_size": 16,
                "visual_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "visual_scale_object_init": 1.0,
            },
        },
        "TRAIN": {"BATCH_IMAGES": 8, "GRAD_ACCUMULATE_STEPS": 2, "END_EPOCH": 2, "LR": 1e-4, "WARMUP_STEPS": 2},
        "VAL": {"BATCH_IMAGES": 8},
        "TEST": {"BATCH_IMAGES": 8},
    }


def tiny_vqa(world: Path, out: Path) -> dict[str, Any]:
    settings = tiny_settings("vqa/base_4x16G_fp32.yaml", world, out)
    settings["DATASET"] |= {
        "ANSWER_VOCAB_FILE": str(world / "vqa/answers_vqa.txt"),
        "ANSWER_VOCAB_SIZE": len(ANSWERS) + 1,
        "TRAIN_IMAGE_SET": "train2014",
    }
    settings["NETWORK"]["CLASSIFIER_PRETRAINED"] = False
    return settings


def write_settings(settings: Mapping[str, Any], path: Path) -> Path:
    path.write_text(yaml.safe_dump(dict(settings)))
    return path

"""A tiny VQA run on a made-up world."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from common.task import Task
from data.scene_questions import ANSWERS
from vqa.task import TASK

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def task() -> Task:
    return TASK


@pytest.fixture
def settings(tiny_world: Path, tmp_path: Path) -> dict:
    """The YAML of the run as a dict; tests may change it before `cfg_path` writes it."""
    return {
        "_BASE_": str(ROOT / "cfgs/vqa/base_4x16G_fp32.yaml"),
        "RNG_SEED": 5,
        "OUTPUT_PATH": str(tmp_path / "out"),
        "GPUS": "0",
        "LOG_FREQUENT": 1,
        "MODEL_PREFIX": "tiny",
        "NUM_WORKERS_PER_GPU": 1,
        "DATASET": {
            "DATASET_PATH": str(tiny_world),
            "ANSWER_VOCAB_FILE": str(tiny_world / "vqa/answers_vqa.txt"),
            "ANSWER_VOCAB_SIZE": len(ANSWERS) + 1,
            "TRAIN_IMAGE_SET": "train2014",
        },
        "NETWORK": {
            "PARTIAL_PRETRAIN": "",
            "BERT_MODEL_NAME": str(tiny_world / "bert"),
            "BERT_RANDOM_INIT": True,
            "IMAGE_FINAL_DIM": 24,
            "CLASSIFIER_PRETRAINED": False,
            "VLBERT": {
                "vocab_size": len((tiny_world / "bert/vocab.txt").read_text().splitlines()),
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


@pytest.fixture
def cfg_path(settings: dict, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path

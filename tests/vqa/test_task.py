"""VQA against the shared task check, and what is VQA's own: the classifier's start and its result file."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.config import load_config
from common.data.text import BertTokenizer
from common.train.run import run_training
from data.extract_features import main as extract_features
from tests.task_check import TaskCheck
from vqa.task import init_classifier_rows


class TestVQA(TaskCheck):
    def box_source(self, task, cfg):
        return f"regions:{cfg.DATASET.DATASET_PATH}/vgbua_res101_precomputed/trainval2014_resnet101_faster_rcnn_genome"

    def questions(self, task, cfg):
        dataset = task.build_dataset(cfg, "val")
        return [
            (dataset.sample(i, random.Random(0)), {"image": dataset.image_path(q), "question": q.text})
            for i, q in list(enumerate(dataset.questions))[::5][:4]
        ]

    def check_results(self, path: Path, dataset: Any) -> None:
        assert path.name == "tiny_vqa2_test2015.json" and path.parent.name == "test2015_test"
        results = json.loads(path.read_text())
        assert [r["question_id"] for r in results] == [q.question_id for q in dataset.questions]
        assert all(r["answer"] in dataset.vocabulary.answers for r in results)


def test_training_on_regions_of_a_grid(task, cfg_path, tiny_world, tmp_path):
    """data.extract_features names images of COCO by the id, whatever the source of boxes."""
    out = f"{tmp_path}/regions"
    for split in ("train2014", "val2014"):
        args = ["--images", f"{tiny_world}/{split}", "--boxes", "grid:1x2", "--out", out, "--packed"]
        assert extract_features([*args, "--random-weights", "--layers", "50", "--scales", "32", "48"]) == 0
    cfg = load_config("vqa", cfg_path, [f"DATASET.REGION_PATH={out}", "TRAIN.END_EPOCH=1"])
    assert len(task.build_dataset(cfg, "train").sample(0, random.Random(0)).boxes) == 3
    assert (run_training(task, cfg, cfg_path) / "tiny-best.model").is_file()


class TestClassifierRows:
    tokenizer = BertTokenizer(
        {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "dog"])}
    )

    def test_a_row_is_the_mean_of_its_pieces_and_no_pieces_leave_it_alone(self):
        """Original 9.17."""
        words = torch.arange(14.0).view(7, 2)
        layer = nn.Linear(2, 3)
        before = layer.weight.detach().clone()
        init_classifier_rows(layer, words, ["red dog", " ", "dog"], self.tokenizer)
        assert torch.equal(layer.weight[0], (words[5] + words[6]) / 2)
        assert torch.equal(layer.weight[1], before[1])
        assert torch.equal(layer.weight[2], words[6])

    def test_a_layer_of_another_size_is_refused(self):
        with pytest.raises(ValueError, match="CLASSIFIER_PRETRAINED"):
            init_classifier_rows(nn.Linear(3, 3), torch.zeros(7, 2), ["a", "b", "c"], self.tokenizer)

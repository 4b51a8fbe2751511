"""Both halves of VCR against the shared task check, and one of them from pixels."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.config import load_config
from common.data.collate import collate
from common.train.adamw import AdamW
from common.train.run import run_test
from tests.task_check import PIXELS, TaskCheck
from vcr.result_table import find_problems, read_table
from vcr.task import TASK
from vcr.text import Q2A, QA2R


class _Half(TaskCheck):
    task_name = Q2A
    pixels = {**PIXELS, "DATASET.MASK_SIZE": 7}

    def questions(self, task, cfg):
        dataset = task.build_dataset(cfg, "val")
        dataset.walk_names = True
        asked = []
        for i in range(3):
            dataset.next_name = 0  # the first name, which the predictor takes too
            a = dataset.annotations[i]
            right = {"rationales": a.rationales, "answer": a.answer_label + 1} if self.task_name == QA2R else {}
            fields = {"objects": a.objects, "question": a.question, "answers": a.answers, **right}
            asked.append((dataset.sample(i, random.Random(0)), {"image": f"{dataset.images}/{a.img_fn}", **fields}))
        return asked

    @pytest.fixture
    def half(self) -> str:
        return self.task_name

    def test_four_samples_can_be_learnt(self, model, samples):
        """The classes of the objects take most of the loss, so look at the answers too."""
        batch = collate(samples)
        optimizer = AdamW(model.parameters(), lr=5e-3)
        losses = []
        for _ in range(60):
            output = model.train()(batch)
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(output.loss.item())
        assert losses[-1] < 0.5 * losses[0]
        assert torch.equal(model.eval()(batch).predictions["label_logits"].argmax(1), batch.targets["label"])

    def check_results(self, path: Path, dataset: Any) -> None:
        prefix = "tiny_a" if self.task_name == Q2A else "tiny_r"
        assert path.name == f"{prefix}_test_result_{self.task_name}.csv" and path.parent.name == "vcr1images_test"
        table = read_table(path)
        assert table.kind == self.task_name and find_problems(table, dataset.ids) == []
        with path.open() as file:
            numbers = np.array([row[1:] for row in list(csv.reader(file))[1:]], dtype=np.float32)
        assert np.array_equal(np.load(path.with_suffix(".npy")), numbers)


class TestQ2A(_Half):
    task_name = Q2A
    pixels = {**PIXELS, "DATASET.MASK_SIZE": 7}


class TestQA2R(_Half):
    task_name = QA2R


def test_from_pixels(cfg_path, tmp_path):
    """Images of several sizes and shapes through the CNN under their masks: gradients, then results."""
    pixels = ["NETWORK.IMAGE_FEAT_PRECOMPUTED=false", "NETWORK.IMAGE_C5_DILATED=false", "DATASET.MASK_SIZE=7"]
    cfg = load_config("vcr", cfg_path, [*pixels, "SCALES=[32, 64]", "NUM_WORKERS_PER_GPU=0"])
    torch.manual_seed(0)
    model = TASK.build_model(cfg)
    dataset = TASK.build_dataset(cfg, "train")
    batch = collate([dataset.sample(i, random.Random(0)) for i in range(2)])
    assert batch.image.shape == (2, 3, 64, 64)  # a wide and a tall canvas
    model(batch).loss.backward()
    assert model.image_feature_extractor.backbone.layer3[0].conv1.weight.grad.abs().sum() > 0

    model.eval()
    with torch.no_grad():
        seen = model._regions(batch)[0]
        batch.box_masks = torch.zeros_like(batch.box_masks)
        assert not torch.allclose(model._regions(batch)[0], seen)

    torch.save({"state_dict": model.state_dict()}, tmp_path / "pixels.model")
    result = run_test(TASK, cfg, cfg_path, tmp_path / "pixels.model").path
    assert find_problems(read_table(result), TASK.build_dataset(cfg, "test").ids) == []

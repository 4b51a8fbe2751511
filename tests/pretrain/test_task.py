"""Pretraining against the shared task check, in its two forms."""

from __future__ import annotations

import dataclasses
import random

import pytest

from common.config import load_config
from common.data.collate import collate
from pretrain.outputs import build_metrics, main_metric
from tests.pretrain.world import tiny_captions_only
from tests.task_check import TaskCheck, master
from tests.tiny import write_settings


class TestMultitask(TaskCheck):
    pixels = None

    def box_source(self, task, cfg):
        return f"regions:{cfg.DATASET[0].DATASET_PATH}/val_frcnn"

    def questions(self, task, cfg):
        """Nothing is hidden; the boxes of a data set are in the order of their scores."""
        dataset = master(task, cfg, "val")
        dataset.settings = dataclasses.replace(dataset.settings, with_mlm=False, with_mvrc=False)
        return [
            (
                dataset.sample(i, random.Random(0)),
                {
                    "image": dataset.image_path(i),
                    "caption": dataset.caption(i),
                    "boxes": dataset.regions(i).boxes.tolist(),
                },
            )
            for i in range(3)
        ]

    scores = "mlm_logits_wvc"
    learning_rate = 1e-2
    without_gradient = ("aux_text_visual_embedding",)  # the check has no plain text

    def test_test_samples_have_no_targets(self, task, cfg):
        """There is nothing to test: whatever the split, words are hidden."""
        assert master(task, cfg, "test").sample(0, random.Random(0)).targets.keys() >= {"mlm_labels", "mvrc_labels"}

    def test_with_text_every_parameter_gets_a_gradient(self, task, cfg, model, samples):
        text = task.build_dataset(cfg, "train")[1]
        batch = dataclasses.replace(collate(samples), auxiliary=(collate([text.sample(0, random.Random(1))]),))
        model.train()(batch).loss.backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []

    def test_metrics(self, cfg):
        names = ["MLMAccWVC", "MLMAccAUX", "MVRCAccuracy", "MLMLossWVC", "MLMLossAUX", "MVRCLoss"]
        assert [*build_metrics(cfg, True).metrics] == [*build_metrics(cfg, False).metrics] == names
        assert main_metric(cfg) == "MLMAccWVC"


class TestCaptionsFromPixels:
    """The module of captions alone, end to end."""

    @pytest.fixture
    def cfg(self, task, world, tmp_path):
        path = write_settings(tiny_captions_only(world, tmp_path / "out"), tmp_path / "pixels.yaml")
        return load_config(task.name, path)

    def test_the_module_takes_its_samples(self, task, cfg):
        dataset = task.build_dataset(cfg, "train")
        output = task.build_model(cfg)(collate([dataset.sample(i, random.Random(i)) for i in range(4)]))
        assert output.losses.keys() == {"mlm_loss", "mvrc_loss", "relationship_loss"} and output.loss.isfinite()

    def test_metrics(self, cfg):
        assert [*build_metrics(cfg, True).metrics] == ["MLMAcc", "MVRCAccuracy", "MLMLossWVC", "MVRCLoss"]
        assert main_metric(cfg) == "MLMAcc"

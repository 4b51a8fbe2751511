"""RefCOCO+ against the shared task check, and from pixels."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import load_config
from common.data.collate import collate
from common.train.run import run_training
from data.extract_features import main as extract_features
from tests.task_check import TaskCheck

# Small enough for a ResNet-50 on a CPU.
PIXELS = [
    "NETWORK.IMAGE_FEAT_PRECOMPUTED=false",
    "NETWORK.IMAGE_NUM_LAYERS=50",
    "NETWORK.IMAGE_C5_DILATED=false",
    "NETWORK.IMAGE_RANDOM_INIT=true",
    "SCALES=[64, 96]",
]


class TestRefCOCO(TaskCheck):
    def questions(self, task, cfg):
        dataset = task.build_dataset(cfg, "val")
        return [
            (
                dataset.sample(i, random.Random(0)),
                {
                    "image": dataset.image_path(e.image_id),
                    "expression": " ".join(e.tokens),
                    "boxes": dataset.candidates(e.image_id).boxes.tolist(),
                },
            )
            for i, e in list(enumerate(dataset.expressions))[::3][:3]
        ]

    def check_results(self, path: Path, dataset: Any) -> None:
        assert path.name == "tiny_refcoco+_test.json" and path.parent.name == "test_test"
        results = json.loads(path.read_text())
        assert [r["sent_id"] for r in results] == [e.sent_id for e in dataset.expressions]
        assert [r["ref_id"] for r in results] == [e.ref_id for e in dataset.expressions]
        for index, result in enumerate(results):
            assert result["box"] in [pytest.approx(b, abs=1e-4) for b in dataset.choices(index).boxes.tolist()]


def test_training_on_regions_of_a_grid(task, cfg_path, small, tmp_path):
    """data.extract_features names images of COCO by the id, whatever the source of boxes."""
    out = f"{tmp_path}/regions"
    args = ["--images", f"{small}/train2014", "--boxes", "grid:2x2", "--out", out, "--random-weights"]
    assert extract_features([*args, "--layers", "50", "--scales", "32", "48"]) == 0
    modes = [f"DATASET.{split}_BOXES=proposal" for split in ("TRAIN", "VAL")]
    keys = [f"DATASET.REGION_PATH={out}", "DATASET.PROPOSAL_SOURCE=vg", "TRAIN.END_EPOCH=1", *modes]
    assert (run_training(task, load_config("refcoco", cfg_path, keys), cfg_path) / "tiny-best.model").is_file()


class TestFromPixels:
    @pytest.mark.parametrize("mode", ["gt", "proposal+gt"])
    def test_a_step_trains_backbone_and_head(self, task, cfg_path, mode):
        cfg = load_config("refcoco", cfg_path, [*PIXELS, f"DATASET.TRAIN_BOXES={mode}"])
        dataset = task.build_dataset(cfg, "train")
        batch = collate([dataset.sample(i, random.Random(i)) for i in (0, 5)])
        assert batch.features is None and batch.image.shape[1] == 3
        torch.manual_seed(0)
        model = task.build_model(cfg).train()
        output = model(batch)
        output.loss.backward()
        assert output.loss.isfinite()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        assert gradients["image_feature_extractor.backbone.layer2.0.conv1.weight"].abs().sum() > 0
        assert not any(n.startswith("image_feature_extractor.backbone.layer1") for n in gradients)  # frozen
        assert [n for n, g in gradients.items() if g is None] == []

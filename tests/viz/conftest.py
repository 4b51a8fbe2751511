"""A predictor with random weights on the made-up world: what is shown must be right whatever a model knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common import checkpoint
from common.config import load_config
from common.inference import Predictor, load_predictor
from tests.tiny import tiny_vqa, write_settings
from vqa.task import TASK

QUESTION = "what color is the big circle?"


@pytest.fixture(scope="session")
def ckpt(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VQA checkpoint that knows how to find boxes and compute features of made-up pictures."""
    folder = tmp_path_factory.mktemp("viz")
    settings = tiny_vqa(tiny_world, folder)
    settings["NETWORK"]["REGION_ENCODER"] = "module:data.scene_regions"
    settings["NETWORK"]["VLBERT"]["initializer_range"] = 0.4  # so that attention is not nearly uniform
    cfg = load_config("vqa", write_settings(settings, folder / "tiny.yaml"))
    torch.manual_seed(1)
    content = {"state_dict": TASK.build_model(cfg).state_dict(), "config": cfg.to_dict(), "task": "vqa"}
    checkpoint.save_file(folder / "tiny.model", content)
    return folder / "tiny.model"


@pytest.fixture(scope="session")
def predictor(ckpt: Path) -> Predictor:
    return load_predictor(ckpt, device="cpu")


@pytest.fixture(scope="session")
def picture(tiny_world: Path) -> Path:
    return sorted((tiny_world / "val2014").glob("*.jpg"))[0]

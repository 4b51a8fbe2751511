"""Fixtures of several test files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.config import load_config
from common.predict.load import load_predictor
from common.predict.predictor import Predictor
from common.task import load_task
from common.weights import checkpoint
from data.scenes.generate import World, write_world
from tests.tiny import tiny_vqa, write_settings

KIT = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_log_handlers() -> Iterator[None]:
    """Entry points that run inside a test leave handlers on streams that pytest closes after it."""
    yield
    root = logging.getLogger()
    for handler in [h for h in root.handlers if type(h) in (logging.StreamHandler, logging.FileHandler)]:
        root.removeHandler(handler)
        handler.close()


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up world of a dozen images in the formats of the real data."""
    folder = tmp_path_factory.mktemp("world") / "world"
    write_world(folder, World(seed=3, train=4, val=3, test=2), force=False)
    return folder


@pytest.fixture(scope="session")
def kit() -> Path:
    """Real data beside the checkout; tests that need it are skipped without it."""
    if not KIT.is_dir():
        pytest.skip(f"no data kit in {KIT}: this test on real data did not run")
    return KIT


@pytest.fixture(scope="session")
def vqa_ckpt(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VQA checkpoint with random weights that knows how to find boxes and compute features of made-up images."""
    folder = tmp_path_factory.mktemp("vqa")
    settings = tiny_vqa(tiny_world, folder)
    settings["NETWORK"]["REGION_ENCODER"] = "module:data.scene_regions"
    settings["NETWORK"]["VLBERT"]["initializer_range"] = 0.4  # so that attention is not nearly uniform
    cfg = load_config("vqa", write_settings(settings, folder / "tiny.yaml"))
    torch.manual_seed(1)
    content = {"state_dict": load_task("vqa").build_model(cfg).state_dict(), "config": cfg.to_dict(), "task": "vqa"}
    checkpoint.save_file(folder / "tiny.model", content)
    return folder / "tiny.model"


@pytest.fixture(scope="session")
def vqa_predictor(vqa_ckpt: Path) -> Predictor:
    return load_predictor(vqa_ckpt, device="cpu")


@pytest.fixture(scope="session")
def image(tiny_world: Path) -> Path:
    """One of the world's images."""
    return sorted((tiny_world / "val2014").glob("*.jpg"))[0]

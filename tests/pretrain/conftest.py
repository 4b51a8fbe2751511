"""A tiny pretraining run on a made-up world."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.task import Task
from pretrain.task import TASK
from tests.pretrain.world import tiny_pretrain, write_world


@pytest.fixture
def task() -> Task:
    return TASK


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DATASET_PATH to train on. Tests do not change it."""
    return write_world(tmp_path_factory.mktemp("pretrain") / "world")


@pytest.fixture
def settings(world: Path, tmp_path: Path) -> dict:
    """Settings of the run, which a test may change before `cfg_path` writes them."""
    return tiny_pretrain(world, tmp_path / "out")


@pytest.fixture
def arguments(cfg_path: Path) -> list[object]:
    """`command` and `error` run scripts with the tiny config."""
    return ["--cfg", cfg_path]

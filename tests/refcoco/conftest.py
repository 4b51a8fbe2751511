"""A tiny RefCOCO+ run on a made-up world."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.task import Task
from refcoco.task import TASK
from tests.refcoco.world import World, golden_world, small_world, tiny_refcoco


@pytest.fixture
def task() -> Task:
    return TASK


@pytest.fixture
def golden(tmp_path: Path) -> World:
    """One image with the numbers of original 10.15. Tests may change it."""
    return golden_world(tmp_path / "golden")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DATASET_PATH to train on. Tests do not change it."""
    folder = tmp_path_factory.mktemp("refcoco") / "world"
    small_world(folder)
    return folder


@pytest.fixture
def settings(small: Path, tmp_path: Path) -> dict:
    """Settings of the run, which a test may change before `cfg_path` writes them."""
    return tiny_refcoco(small, tmp_path / "out")


@pytest.fixture
def arguments(cfg_path: Path) -> list[object]:
    """`command` and `error` run scripts with the tiny config."""
    return ["--cfg", cfg_path]

"""A tiny VCR run on a made-up world."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from common.task import Task
from tests.vcr.world import tiny_vcr, write_world
from vcr.task import TASK
from vcr.text import Q2A


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DATASET_PATH. Tests do not change it."""
    return write_world(tmp_path_factory.mktemp("vcr"))


@pytest.fixture
def world(shared_world: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(shared_world, tmp_path / "world"))


@pytest.fixture
def task() -> Task:
    return TASK


@pytest.fixture
def half() -> str:
    """DATASET.TASK of `cfg_path`. Test classes may override it."""
    return Q2A


@pytest.fixture
def settings(shared_world: Path, tmp_path: Path, half: str) -> dict:
    """Settings of the run, which a test may change before `cfg_path` writes them."""
    return tiny_vcr(shared_world, tmp_path / "out", half)

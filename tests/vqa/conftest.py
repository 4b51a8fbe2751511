"""A tiny VQA run on a made-up world."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.task import Task
from tests.tiny import tiny_vqa
from vqa.task import TASK


@pytest.fixture
def task() -> Task:
    return TASK


@pytest.fixture
def settings(tiny_world: Path, tmp_path: Path) -> dict:
    """Settings of the run, which a test may change before `cfg_path` writes them."""
    return tiny_vqa(tiny_world, tmp_path / "out")


@pytest.fixture
def arguments(cfg_path: Path) -> list[object]:
    """`command` and `error` run scripts with the tiny config."""
    return ["--cfg", cfg_path]

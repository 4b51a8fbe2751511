"""Fixtures of several test files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data.scenes import World, write_world

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
    """A made-up world of a dozen pictures in the formats of the real data."""
    folder = tmp_path_factory.mktemp("world") / "world"
    write_world(folder, World(seed=3, train=4, val=3, test=2), force=False)
    return folder


@pytest.fixture(scope="session")
def kit() -> Path:
    """Real data beside the checkout; tests that need it are skipped without it."""
    if not KIT.is_dir():
        pytest.skip(f"no data kit in {KIT}: this test on real data did not run")
    return KIT

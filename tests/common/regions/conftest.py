from __future__ import annotations

from pathlib import Path

import pytest

from common.regions.json_store import save_regions
from tests.common.regions.stores import make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 9, 10 and 581 with 1, 2 and 3 boxes."""
    path = tmp_path / "regions"
    path.mkdir()
    for count, name in enumerate(("9", "10", "581"), start=1):
        save_regions(path, name, make(count, seed=count))
    return path

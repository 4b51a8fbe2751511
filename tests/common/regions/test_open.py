"""Every form of store: which one a path names, and that all give the same regions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from common.regions.lazy_features import read_features
from common.regions.open import open_regions
from common.regions.packed_store import PackedRegions
from common.regions.regions import RegionStore
from tests.common.regions.stores import as_flat_zip, as_folder, as_packed, as_zip, assert_same, make, zipped


@pytest.mark.parametrize("build", [as_folder, as_zip, as_flat_zip, as_packed])
def test_every_store_gives_the_same(folder: Path, build: Callable[[Path], RegionStore]) -> None:
    store = build(folder)
    assert store.names() == ["10", "581", "9"]
    assert 9 in store and "581" in store and 99 not in store and "5811234567" not in store and "" not in store
    for count, name in enumerate((9, "10", 581), start=1):
        assert_same(store.regions(name), make(count, seed=count))
    lean = store.regions(10, with_features=False)
    assert lean.features is None and lean.image_feature is None
    with pytest.raises(FileNotFoundError, match="99"):
        store.regions(99)


class Boxes(Dataset):
    def __init__(self, store: RegionStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> float:
        features = self.store.regions(("9", "10", "581")[index % 3]).features
        assert features is not None
        return float(read_features(features).sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("build", [as_zip, as_packed])
def test_stores_work_in_workers(folder: Path, build: Callable[[Path], RegionStore], method: str) -> None:
    data = Boxes(build(folder))
    expected = [data[i] for i in range(3)] * 20  # reads here first: handles are open when workers start
    loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=method)
    assert torch.cat(list(loader)).tolist() == expected


def test_open_regions_prefers_packed_then_what_zip_mode_says(folder: Path) -> None:
    assert open_regions(folder).path == str(folder)
    path = zipped(folder, "")
    assert open_regions(f"{folder}/").path == str(folder)
    assert open_regions(folder, zip_mode=True).path == path
    packed = as_packed(folder).path
    assert open_regions(folder).path == packed
    assert open_regions(path).path == path
    assert isinstance(open_regions(packed, zip_mode=True), PackedRegions)


def test_open_regions_takes_a_lone_zip_and_says_what_it_looked_for(folder: Path) -> None:
    alone = folder.parent / "alone.zip"
    Path(zipped(folder, "")).rename(alone)
    assert open_regions(folder.parent / "alone").path == str(alone)
    with pytest.raises(FileNotFoundError, match=r"nil\.packed, .*nil, .*nil\.zip"):
        open_regions(folder.parent / "nil")

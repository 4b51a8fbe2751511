"""Features of a packed store are read late and once, and the batches are those of any other store."""

from __future__ import annotations

import dataclasses
import json
import pickle
import random
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data.collate import UnreadBatch, collate, collate_unread
from common.data.dataset import TaskDataset
from common.data.loader import BatchLoader, MultiLoader
from common.data.sample import Sample
from common.errors import RegionError
from common.regions.json_store import JsonRegions, save_regions
from common.regions.lazy_features import (
    LazyFeatures,
    mean_feature,
    put_first,
    read_features,
    read_padded,
    select_features,
)
from common.regions.packed_store import PackedRegions, pack
from common.regions.regions import FEATURE_DIM, Regions, RegionStore, with_image_box

IMAGES = 7


class Questions(TaskDataset):
    """A sample for each image of a store: the whole image in front of its boxes, or its boxes in reverse order."""

    def __init__(self, store: RegionStore, image_box: bool) -> None:
        self.store, self.image_box = store, image_box

    def __len__(self) -> int:
        return IMAGES

    def sample(self, index: int, rng: random.Random) -> Sample:
        regions = self.store.regions(index)
        boxes, features = regions.boxes, regions.features
        if self.image_box:
            boxes, features = with_image_box(boxes, features, regions.image_feature, 64, 48)
        else:
            features = select_features(features, range(len(boxes))[::-1])
        text = torch.tensor([index])
        return Sample(index, torch.zeros(4), boxes, text, text, features=features)


def write(folder: Path, image_feature: bool) -> JsonRegions:
    """Image n has 1 + 9 n regions, from one to more than are converted at once."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(1)
    for name in range(IMAGES):
        count = 1 + 9 * name
        whole = torch.rand(FEATURE_DIM, generator=draw).half().float() if image_feature else None
        features = torch.rand(count, FEATURE_DIM, generator=draw).half().float()  # exact in both number formats
        save_regions(folder, str(name), Regions(torch.rand(count, 4, generator=draw), features, whole))
    return JsonRegions(folder)


def lazy(store: RegionStore, name: int | str) -> LazyFeatures:
    features = store.regions(name).features
    assert isinstance(features, LazyFeatures)
    return features


def assert_same(got: object, wanted: object, name: str = "batch") -> None:
    """Compares dataclasses and mappings of tensors by value."""
    assert type(got) is type(wanted), name
    if isinstance(got, torch.Tensor):
        assert torch.equal(got, wanted), name
    elif dataclasses.is_dataclass(got):
        for field in dataclasses.fields(got):
            assert_same(getattr(got, field.name), getattr(wanted, field.name), f"{name}.{field.name}")
    elif isinstance(got, dict):
        assert got.keys() == wanted.keys(), name
        for key in got:
            assert_same(got[key], wanted[key], f"{name}[{key!r}]")
    else:
        assert got == wanted, name


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("image_feature", [True, False])
@pytest.mark.parametrize("image_box", [True, False])
def test_batches_are_those_of_the_json_files(tmp_path: Path, dtype: str, image_feature: bool, image_box: bool) -> None:
    files = write(tmp_path / "a", image_feature)
    store = pack(files, tmp_path / "a.packed", dtype)
    wanted = [*BatchLoader(Questions(files, image_box), 3, shuffle=True)]
    for workers in (0, 1):
        got = [*BatchLoader(Questions(store, image_box), 3, shuffle=True, num_workers=workers)]
        assert len(got) == len(wanted) == 3
        for ours, theirs in zip(got, wanted, strict=True):
            assert_same(ours, theirs)


def test_loaders_in_step(tmp_path: Path) -> None:
    files = write(tmp_path / "a", False)
    for workers in (0, 1):
        mine, theirs = (
            MultiLoader(BatchLoader(Questions(s, True), 3, num_workers=workers), [BatchLoader(Questions(s, False), 2)])
            for s in (pack(files, tmp_path / f"{workers}.packed"), files)
        )
        for ours, wanted in zip(mine, theirs, strict=True):
            assert_same(ours.auxiliary[0], wanted.auxiliary[0])
            assert_same(*(dataclasses.replace(batch, auxiliary=()) for batch in (ours, wanted)))


@pytest.mark.parametrize("image_box", [True, False])
def test_a_workers_message_has_no_features(tmp_path: Path, image_box: bool) -> None:
    data = Questions(pack(write(tmp_path / "a", False), tmp_path / "a.packed"), image_box)
    batch = collate_unread([data[i, 0] for i in range(IMAGES)])
    assert isinstance(batch, UnreadBatch) and batch.batch.features is None
    message = bytes(ForkingPickler.dumps(batch.features))
    rows = IMAGES if image_box else 0  # the features of whole images do travel
    assert len(message) < (rows + 1) * FEATURE_DIM * 4 < batch.read().features.nbytes
    again = UnreadBatch(batch.batch, pickle.loads(message))
    assert torch.equal(again.read().features, batch.read().features)


def test_equal_files_share_a_memory_map(tmp_path: Path) -> None:
    """A worker's message names the file, which the process that reads it has mapped already."""
    store = pack(write(tmp_path / "a", True), tmp_path / "a.packed")
    features = lazy(store, 3)
    wanted = features.read()
    (Path(store.path) / "features.bin").unlink()
    assert torch.equal(pickle.loads(pickle.dumps(features)).read(), wanted)


def test_a_store_that_was_replaced_is_refused(tmp_path: Path) -> None:
    files = write(tmp_path / "a", False)
    old = lazy(pack(files, tmp_path / "a.packed"), 3)
    new = lazy(pack(files, tmp_path / "a.packed", info={"version": 2}, overwrite=True), 3)
    with pytest.raises(RegionError, match=r"a\.packed/features\.bin: another store"):
        old.read()
    assert new.read().shape == (28, FEATURE_DIM)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lazy_features_do_what_a_tensor_does(tmp_path: Path, dtype: str) -> None:
    files = write(tmp_path / "a", False)
    ours, theirs = lazy(pack(files, tmp_path / "a.packed", dtype), 3), files.regions(3).features
    first, chosen = torch.rand(FEATURE_DIM), torch.tensor([20, 3, 3, 27, 0])
    for change in (
        lambda features: features,
        lambda features: select_features(features, chosen),
        lambda features: select_features(select_features(features, chosen), [4, 0]),
        lambda features: select_features(features, []),
        lambda features: put_first(first, features),
        lambda features: put_first(mean_feature(features), select_features(features, range(9))),
    ):
        mine, wanted = change(ours), change(theirs)
        assert isinstance(mine, LazyFeatures) and len(mine) == len(wanted) and mine.shape == wanted.shape
        assert torch.equal(read_features(mine), read_features(wanted))
        if len(wanted):
            assert torch.equal(mean_feature(mine), mean_feature(wanted))
    assert torch.equal(ours.read(), theirs)  # none of this has changed it


def test_what_was_read_can_be_written_to(tmp_path: Path) -> None:
    store = pack(write(tmp_path / "a", True), tmp_path / "a.packed")
    lazy(store, 3).read().fill_(5)
    assert 5 not in lazy(store, 3).read()


def test_bad_selections_are_refused(tmp_path: Path) -> None:
    features = lazy(pack(write(tmp_path / "a", True), tmp_path / "a.packed"), 1)
    for indices in ([0, 10], [-1]):
        with pytest.raises(IndexError, match=r"of 10$"):
            features.select(indices)
    with_first = features.with_first(torch.zeros(FEATURE_DIM))
    with pytest.raises(ValueError, match="select the regions before"):
        with_first.select([0])
    with pytest.raises(ValueError, match="already"):
        with_first.with_first(torch.zeros(FEATURE_DIM))


def test_lazy_features_and_tensors_in_one_batch(tmp_path: Path) -> None:
    files = write(tmp_path / "a", False)
    store = pack(files, tmp_path / "a.packed")
    ours, theirs = Questions(store, True), Questions(files, True)
    mixed = [(ours, theirs)[i % 2][i, 0] for i in range(IMAGES)]
    assert_same(collate(mixed), collate([theirs[i, 0] for i in range(IMAGES)]))


@pytest.mark.parametrize("count", [1, 15, 16, 37, 100])
def test_conversion_in_pieces_is_exact(count: int) -> None:
    rows = torch.rand(count, FEATURE_DIM, generator=torch.Generator().manual_seed(count))
    for stored in (rows, rows.half()):
        assert torch.equal(read_padded([stored])[0], stored.float())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_mean_of_an_image_is_stored_and_a_store_without_it_gives_the_same(tmp_path: Path, dtype: str) -> None:
    store = pack(write(tmp_path / "json", image_feature=False), tmp_path / "x.packed", dtype)
    file = tmp_path / "x.packed/mean_features.bin"
    means = np.fromfile(file, "<f4").reshape(IMAGES, FEATURE_DIM)
    wanted = [lazy(store, i).mean() for i in range(IMAGES)]
    assert all(np.array_equal(mean.numpy(), row) for mean, row in zip(wanted, means, strict=True))
    meta = json.loads((tmp_path / "x.packed/meta.json").read_text())
    del meta["columns"]["mean"]
    (tmp_path / "x.packed/meta.json").write_text(json.dumps(meta))
    file.unlink()
    without = PackedRegions(store.path)
    for i, mean in enumerate(wanted):
        assert torch.equal(lazy(without, i).mean(), mean)
        torch.testing.assert_close(mean, lazy(without, i).read().mean(0))


def test_a_store_with_features_of_images_needs_no_means(tmp_path: Path) -> None:
    store = pack(write(tmp_path / "json", image_feature=True), tmp_path / "x.packed")
    assert "mean" not in store.meta["columns"] and not (tmp_path / "x.packed/mean_features.bin").exists()

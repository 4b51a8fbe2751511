"""Features of a packed store are read late and once, and the batches are those of any other store."""

from __future__ import annotations

import dataclasses
import json
import pickle
import random
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch

from common.data.collate import collate
from common.data.dataset import TaskDataset
from common.data.loader import BatchLoader, MultiLoader
from common.data.sample import Batch, Sample
from common.errors import RegionError
from common.regions.lazy_features import (
    Buffers,
    StoredRows,
    _copy,
    _mean,
)
from common.regions.regions import (
    FEATURE_DIM,
    JsonRegions,
    PackedRegions,
    Regions,
    RegionStore,
    pack,
    save_regions,
    with_image_box,
)

IMAGES = 7


class Questions(TaskDataset):
    """A sample for each image of a store, the whole image in front of its boxes where that is asked for."""

    def __init__(self, store: RegionStore, image_box: bool) -> None:
        self.store, self.image_box = store, image_box

    def __len__(self) -> int:
        return IMAGES

    def sample(self, index: int, rng: random.Random) -> Sample:
        regions = self.store.regions(index)
        boxes, features = regions.boxes, regions.features
        if self.image_box:
            boxes, features = with_image_box(boxes, features, regions.image_feature, 64, 48)
        text = torch.tensor([index])
        return Sample(index, torch.zeros(4), boxes, text, text, features=features)


def write(folder: Path, image_feature: bool) -> JsonRegions:
    folder.mkdir()
    draw = torch.Generator().manual_seed(1)
    for name in range(IMAGES):
        count = 1 + 9 * name  # from one row to more than a piece of _copy has
        whole = torch.rand(FEATURE_DIM, generator=draw).half().float() if image_feature else None
        features = torch.rand(count, FEATURE_DIM, generator=draw).half().float()  # exact in both number formats
        save_regions(folder, str(name), Regions(torch.rand(count, 4, generator=draw), features, whole))
    return JsonRegions(folder)


@pytest.fixture
def rows(tmp_path: Path) -> StoredRows:
    features = pack(write(tmp_path / "a", True), tmp_path / "a.packed").regions("3").features
    assert isinstance(features, StoredRows)
    return features


def assert_same(got: Batch, wanted: Batch) -> None:
    for field in dataclasses.fields(Batch):
        a, b = getattr(got, field.name), getattr(wanted, field.name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


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


def test_a_workers_message_has_no_features(tmp_path: Path) -> None:
    store = pack(write(tmp_path / "a", True), tmp_path / "a.packed")
    data = Questions(store, False)
    batch = collate([data[i, 0] for i in range(IMAGES)], read=False)
    assert batch.features is None and all(rows.unread for rows in batch.stored)
    message = bytes(ForkingPickler.dumps(batch.stored))
    assert len(message) < FEATURE_DIM * 4 < batch.read().features.nbytes
    again = pickle.loads(message)
    assert all(rows.store is store for rows in again)  # mapped already
    assert torch.equal(dataclasses.replace(batch, stored=again).read().features, batch.read().features)


def test_a_message_about_a_store_that_was_replaced(tmp_path: Path) -> None:
    files = write(tmp_path / "a", False)
    message = pickle.dumps(pack(files, tmp_path / "a.packed"))
    new = pack(files, tmp_path / "a.packed", info={"version": 2}, overwrite=True)
    assert pickle.loads(pickle.dumps(new)) is new
    with pytest.raises(RegionError, match=r"a\.packed: another store"):
        pickle.loads(message)


def test_rows_are_a_tensor_to_who_looks(rows: StoredRows) -> None:
    assert isinstance(rows, torch.Tensor) and rows.shape == (28, FEATURE_DIM) and len(rows) == 28 and rows.unread
    values = rows.store.mapped_features(rows.start, rows.stop).clone()
    assert torch.equal(rows, values) and not rows.unread
    assert type(rows[:2]) is type(rows + 1) is torch.Tensor and rows.device.type == "cpu"
    assert (rows.numpy() == values.numpy()).all() and torch.equal(torch.cat([rows, rows])[28:], values)
    torch.testing.assert_close(rows, values)


def test_what_was_changed_stays_changed_and_the_store_does_not(rows: StoredRows) -> None:
    rows[0] = 5.0
    rows[1:].mul_(0)
    text = torch.tensor([0])
    for read in (True, False):
        batch = collate([Sample(0, torch.zeros(4), torch.zeros(28, 4), text, text, features=rows)], read)
        assert batch.stored is None and batch.features.unique().tolist() == [0, 5]
    boxes, features = with_image_box(torch.zeros(28, 4), rows, torch.ones(FEATURE_DIM), 9, 9)
    assert features[:2, 0].tolist() == [1, 5] and len(boxes) == 29
    assert 5 not in rows.store.regions("3").features


def test_read_and_unread_samples_of_a_batch(tmp_path: Path) -> None:
    files = write(tmp_path / "a", False)
    store = pack(files, tmp_path / "a.packed")
    ours, theirs = Questions(store, True), Questions(files, True)
    mixed = [(ours, theirs)[i % 2][i, 0] for i in range(IMAGES)]
    assert_same(collate(mixed, read=False), collate([theirs[i, 0] for i in range(IMAGES)]))


@pytest.mark.parametrize("count", [1, 15, 16, 37, 100])
def test_pieces_give_the_bits_of_the_whole(count: int) -> None:
    rows = torch.rand(count, FEATURE_DIM, generator=torch.Generator().manual_seed(count))
    assert torch.equal(_mean(rows), rows.mean(0))
    for stored in (rows, rows.half()):
        out = torch.empty(count, FEATURE_DIM)
        _copy(out, stored)
        assert torch.equal(out, stored.float())


def test_a_buffer_is_written_again_when_nothing_shares_it() -> None:
    buffers = Buffers()
    first = buffers.empty((2, 3))
    address, view = first.data_ptr(), first[1]
    del first
    assert buffers.empty((2, 3)).data_ptr() != address  # a part is still in use
    del view
    other = buffers.empty((4, 5))
    assert other.shape == (4, 5) and other.dtype == torch.float32
    assert address in (other.data_ptr(), buffers.empty((2, 3)).data_ptr())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_store_knows_the_mean_of_an_image_and_one_without_it_gives_the_same(tmp_path, dtype):
    store = pack(write(tmp_path / "json", image_feature=False), tmp_path / "x.packed", dtype)
    with_mean = [Questions(store, True).sample(i, random.Random()).features for i in range(IMAGES)]
    assert all(rows.first is not None for rows in with_mean)
    meta = json.loads((tmp_path / "x.packed/meta.json").read_text())
    del meta["columns"]["mean"]
    (tmp_path / "x.packed/meta.json").write_text(json.dumps(meta))
    (tmp_path / "x.packed/mean_features.bin").unlink()
    without = [Questions(PackedRegions(store.path), True).sample(i, random.Random()).features for i in range(IMAGES)]
    for one, other in zip(with_mean, without, strict=True):
        assert other.first is None and torch.equal(one.loaded, other.loaded)
        torch.testing.assert_close(one.loaded[0], one.loaded[1:].mean(0))


def test_a_store_with_features_of_images_needs_no_means(tmp_path):
    store = pack(write(tmp_path / "json", image_feature=True), tmp_path / "x.packed")
    assert "mean" not in store.meta["columns"] and not (tmp_path / "x.packed/mean_features.bin").exists()

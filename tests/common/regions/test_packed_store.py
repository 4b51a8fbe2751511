"""The packed store."""

from __future__ import annotations

import json
import pickle
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import RegionError
from common.regions.json_store import JsonRegions, save_regions, unpack
from common.regions.lazy_features import mean_feature
from common.regions.packed_store import PackedRegions, pack, packed_writer
from common.regions.regions import FEATURE_DIM, Regions
from tests.common.regions.stores import as_packed, assert_same, make


def test_pickled_packed_store_carries_no_data(folder: Path) -> None:
    store = as_packed(folder)
    store.regions(9)
    data = pickle.dumps(store)
    assert len(data) < 2000
    assert_same(pickle.loads(data).regions(9), make(1, seed=1))


def test_packed_round_trip_gives_the_same_files(folder: Path) -> None:
    back = unpack(as_packed(folder), folder.parent / "back")
    for file in folder.iterdir():
        assert (Path(back.path) / file.name).read_bytes() == file.read_bytes()
    assert sorted(p.name for p in folder.parent.iterdir()) == ["back", "regions", "regions.packed"]


def test_float16_halves_and_rounds(folder: Path) -> None:
    exact, half = as_packed(folder), pack(JsonRegions(folder), f"{folder}-half.packed", "float16", {"from": "test"})
    assert half.meta["info"] == {"from": "test"}
    got, wanted = half.regions(581), make(3, seed=3)
    assert got.boxes.equal(wanted.boxes)
    assert_same(got, wanted, atol=2**-11)  # values in [0, 1]: half a unit in the last place
    size = [(Path(store.path) / "features.bin").stat().st_size for store in (exact, half)]
    assert size == [6 * 2048 * 4, 6 * 2048 * 2]


def test_boxes_alone_can_be_packed(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    save_regions(tmp_path / "plain", "a", Regions(torch.tensor([[0.0, 0, 1, 1]])))
    got = pack(JsonRegions(tmp_path / "plain"), tmp_path / "plain.packed").regions("a")
    assert got.boxes.tolist() == [[0, 0, 1, 1]]
    assert got.features is None and got.class_scores is None and got.width is None


def test_failed_pack_leaves_nothing(folder: Path) -> None:
    def packing_fails(match: str, dtype: str = "float32") -> None:
        with pytest.raises(RegionError, match=match):
            pack(JsonRegions(folder), f"{folder}.packed", dtype)
        assert [p.name for p in folder.parent.iterdir()] == ["regions"]

    original = (folder / "9.json").read_bytes()
    (folder / "9.json").write_bytes(original[:1000])
    packing_fails(r"9\.json: no JSON")
    large = make(1)
    large.features = torch.full((1, FEATURE_DIM), 1e5)
    save_regions(folder, "9", large)
    packing_fails(r"9: features goes up to 100000, beyond float16 \(65504\)", "float16")
    large.features = None
    save_regions(folder, "9", large)
    packing_fails(r"9: fields .* but image 10 has")


def test_existing_store_is_replaced_only_when_asked(folder: Path) -> None:
    as_packed(folder)
    with pytest.raises(FileExistsError):
        as_packed(folder)
    save_regions(folder, "77", make())
    assert 77 in pack(JsonRegions(folder), f"{folder}.packed", overwrite=True)


def test_truncated_packed_store_is_named(folder: Path) -> None:
    path = Path(as_packed(folder).path)
    data = (path / "features.bin").read_bytes()
    (path / "features.bin").write_bytes(data[:-4])
    with pytest.raises(RegionError, match=r"features\.bin: 49148 bytes, the index says 49152"):
        PackedRegions(path)


def test_a_stored_box_that_is_not_finite_is_named(folder: Path) -> None:
    path = Path(as_packed(folder).path)
    with (path / "boxes.bin").open("r+b") as boxes:  # image 10 has the first two boxes
        boxes.seek(4 * 4)
        boxes.write(b"\x00\x00\xc0\x7f")
    with pytest.raises(RegionError, match=r"regions\.packed: 10: box 2 of 2 is not finite: \[nan"):
        PackedRegions(path).regions(10, with_features=False)
    assert PackedRegions(path).regions(9).boxes.isfinite().all()


def test_images_may_come_in_any_order(folder: Path) -> None:
    source = JsonRegions(folder)
    with packed_writer(f"{folder}.packed", "float32") as writer:
        for name in ("9", "581", "10"):
            writer.add(name, source.regions(name))
        assert (writer.count, writer.rows) == (3, 6)
    store = PackedRegions(f"{folder}.packed")
    assert store.names() == ["10", "581", "9"]
    for name in store.names():
        assert_same(store.regions(name), source.regions(name))
        features = store.regions(name).features
        torch.testing.assert_close(mean_feature(features), source.regions(name).features.mean(0))  # type: ignore[arg-type, union-attr]
    assert "58" not in store and "99" not in store
    assert store.meta["format"] == 2  # a program without order.npy refuses it
    assert pack(source, f"{folder}-sorted.packed").meta["format"] == 1


def test_a_writer_refuses_and_leaves_nothing(folder: Path) -> None:
    def writing_fails(error: type[Exception], match: str, *images: tuple[str, Regions]) -> None:
        with pytest.raises(error, match=match), packed_writer(f"{folder}.packed") as writer:
            for name, regions in images:
                writer.add(name, regions)
        assert [p.name for p in folder.parent.iterdir()] == ["regions"]

    writing_fails(RegionError, "a: two images have this name", ("a", make()), ("a", make()))
    writing_fails(RegionError, "nothing to pack")
    broken = make()
    broken.features[1, 5] = float("nan")  # type: ignore[index]
    writing_fails(RegionError, "b: features has 1 values that are not finite", ("a", make()), ("b", broken))


def test_a_full_disk_names_the_file(folder: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing past the limit is then an OSError
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        with pytest.raises(OSError, match=r"features\.bin"):
            as_packed(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert [p.name for p in folder.parent.iterdir()] == ["regions"]


def damaged_meta(path: Path, change: dict[str, object]) -> None:
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | change))


@pytest.mark.parametrize(
    "change",
    [{"format": None}, {"format": "1"}, {"count": -1}, {"dtype": "object"}, {"columns": {"other": 4}}, {"rows": 1.5}],
)
def test_a_damaged_meta_file_is_named(folder: Path, change: dict[str, object]) -> None:
    store = as_packed(folder)
    damaged_meta(Path(store.path), change)
    with pytest.raises(RegionError, match=r"meta\.json: expected"):
        PackedRegions(store.path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"<html>"])
def test_a_meta_file_of_something_else_is_named(folder: Path, content: bytes) -> None:
    store = as_packed(folder)
    (Path(store.path) / "meta.json").write_bytes(content)
    with pytest.raises(RegionError, match=r"meta\.json"):
        PackedRegions(store.path)


@pytest.mark.parametrize("file", ["names.npy", "offsets.npy", "sizes.npy"])
@pytest.mark.parametrize("damage", ["cut", "text", "other", "pickle"])
def test_a_damaged_index_is_named(folder: Path, file: str, damage: str) -> None:
    store = as_packed(folder)
    path = Path(store.path) / file
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "text":
        path.write_bytes(b"no array")
    elif damage == "other":
        np.save(path, np.full(3, 7))
    else:
        np.save(path, np.array([None], dtype=object), allow_pickle=True)
    with pytest.raises(RegionError, match=file):
        PackedRegions(store.path).regions(9)


def test_places_beyond_the_store_are_named(folder: Path) -> None:
    store = as_packed(folder)
    path = Path(store.path) / "offsets.npy"
    offsets = np.load(path)
    offsets[1] = -65532
    np.save(path, offsets)
    with pytest.raises(RegionError, match=r"offsets\.npy: damaged"):
        PackedRegions(store.path).regions(9)


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/b", ".."])
def test_names_that_leave_the_folder_are_not_unpacked(tmp_path: Path, name: str) -> None:
    with packed_writer(tmp_path / "x.packed") as writer:
        writer.add(name, Regions(torch.tensor([[0.0, 0, 1, 1]])))
    with pytest.raises(RegionError, match="is no name of an image"):
        unpack(PackedRegions(tmp_path / "x.packed"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.packed"]

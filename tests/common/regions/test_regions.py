"""Region files: the published JSON, zips of it, and the packed store."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from common.errors import RegionError
from common.regions.regions import (
    FEATURE_DIM,
    JsonRegions,
    PackedRegions,
    Regions,
    RegionStore,
    check,
    open_regions,
    pack,
    read_region_json,
    save_regions,
    unpack,
    write_region_json,
)

KEYS = ("boxes", "features", "image_feature", "class_scores")


def make(count: int = 3, seed: int = 0, classes: int = 5) -> Regions:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 20
    return Regions(
        boxes=torch.cat([corner, corner + 10], dim=1),
        features=torch.rand(count, FEATURE_DIM, generator=generator),
        image_feature=torch.rand(FEATURE_DIM, generator=generator),
        class_scores=torch.rand(count, classes, generator=generator).softmax(1),
        width=64,
        height=48,
    )


def assert_same(got: Regions, wanted: Regions, atol: float = 0) -> None:
    assert (got.width, got.height) == (wanted.width, wanted.height)
    for key in KEYS:
        torch.testing.assert_close(getattr(got, key), getattr(wanted, key), atol=atol, rtol=0, msg=key)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 9, 10 and 581 with 1, 2 and 3 boxes."""
    path = tmp_path / "regions"
    path.mkdir()
    for count, name in enumerate(("9", "10", "581"), start=1):
        save_regions(path, name, make(count, seed=count))
    return path


def zipped(folder: Path, prefix: str) -> str:
    path = f"{folder}.zip"
    with ZipFile(path, "w") as file:
        for entry in folder.iterdir():
            file.write(entry, prefix + entry.name)
    return path


def test_json_is_the_published_format() -> None:
    boxes = np.array([[1, 2, 3, 4], [5, 6, 7, 8.5]], dtype="<f4")
    record = {"image_id": 9, "image_w": 20, "image_h": 10, "num_boxes": 2, "attrs": "ignored"}
    record["boxes"] = base64.encodebytes(boxes.tobytes()).decode()  # with line ends
    regions = read_region_json(json.dumps(record).encode(), "9.json")
    assert regions.boxes.tolist() == boxes.tolist()
    assert (regions.width, regions.height) == (20, 10)
    assert regions.features is None and regions.image_feature is None and regions.class_scores is None

    written = json.loads(write_region_json(make(2), "9"))
    assert list(written) == [
        "image_id", "num_boxes", "image_w", "image_h", "boxes", "features", "image_box_feature", "classes",
    ]  # fmt: skip
    assert written["image_id"] == 9 and written["num_boxes"] == 2
    assert len(base64.b64decode(written["features"])) == 2 * 2048 * 4


def test_json_round_trip_is_exact_and_writable() -> None:
    got = read_region_json(write_region_json(make(), "a"), "a")
    assert_same(got, make())
    got.boxes += 1
    got.features *= 2  # type: ignore[operator]


def test_without_features_nothing_but_features_is_dropped() -> None:
    got = read_region_json(write_region_json(make(), "a"), "a", with_features=False)
    assert got.features is None and got.image_feature is None
    assert got.class_scores is not None


def damaged(**changes: Any) -> bytes:
    return json.dumps(json.loads(write_region_json(make(3), "9")) | changes).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"x\.json: no JSON \(0 bytes; cut off\?\)"),
        (damaged()[:5000], r"x\.json: no JSON \(5000 bytes; cut off\?\)"),
        (b"[]", r"x\.json: num_boxes must be an integer of at least 1, got None"),
        (damaged(num_boxes=0), r"num_boxes must be .* got 0"),
        (damaged(num_boxes=2), r"boxes has 48 bytes, wanted 2 x 4 float32 = 32 bytes"),
        (damaged(boxes="AAAA"), r"boxes has 3 bytes, wanted 3 x 4 float32 = 48 bytes"),
        (damaged(boxes="AAAAA"), r"x\.json: boxes: no base64 text"),
        (damaged(boxes=None), r"x\.json: no key 'boxes'"),
        (
            damaged(features=base64.b64encode(bytes(2 * 2048 * 4)).decode()),
            r"features has 16384 bytes, wanted 3 x 2048 float32 = 24576 bytes",
        ),
        (damaged(image_box_feature=""), r"image_box_feature has 0 bytes, wanted 1 x 2048"),
        (damaged(classes="AAAA"), r"classes has 3 bytes, wanted 3 rows of float32"),
    ],
)
def test_damaged_json_is_named(data: bytes, message: str) -> None:
    with pytest.raises(RegionError, match=message):
        read_region_json(data, "x.json")


def test_rows_that_disagree_are_not_written() -> None:
    regions = make(3)
    regions.features = torch.zeros(2, FEATURE_DIM)
    with pytest.raises(RegionError, match=r"9: features must be \[3, 2048\], got \[2, 2048\]"):
        write_region_json(regions, "9")


def as_folder(folder: Path) -> RegionStore:
    return JsonRegions(folder)


def as_zip(folder: Path) -> RegionStore:
    return JsonRegions(zipped(folder, "regions/"))


def as_flat_zip(folder: Path) -> RegionStore:
    return JsonRegions(zipped(folder, ""))


def as_packed(folder: Path) -> RegionStore:
    return pack(JsonRegions(folder), f"{folder}.packed")


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
        return float(features.sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("build", [as_zip, as_packed])
def test_stores_work_in_workers(folder: Path, build: Callable[[Path], RegionStore], method: str) -> None:
    data = Boxes(build(folder))
    expected = [data[i] for i in range(3)] * 20  # reads here first: handles are open when workers start
    loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=method)
    assert torch.cat(list(loader)).tolist() == expected


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


def test_check_finds_each_fault(folder: Path) -> None:
    store = JsonRegions(folder)
    assert check(store) == []
    assert check(store, expected_sizes={"9": (64, 48)}) == []

    (folder / "10.json").write_bytes(b"{")
    bad = make(2)
    bad.features[0, :3] = float("nan")  # type: ignore[index]
    bad.boxes[1] = torch.tensor([5.0, 5, 70, 20])
    bad.class_scores[0] *= 0.5  # type: ignore[index]
    save_regions(folder, "581", bad)
    found = [str(problem) for problem in check(store, [9, 10, 581, 77], {"9": (60, 48)})]
    assert found[0] == "9: image size (64, 48) in the file, expected (60, 48)"
    assert found[1].startswith("10: ") and "no JSON" in found[1]
    assert found[2:] == [
        "581: features has 3 values that are not finite",
        "581: a box lies outside the 64 x 48 image",
        "581: class scores of a box do not sum to 1",
        "77: missing",
    ]


def test_check_reports_inverted_boxes_but_not_thin_ones(folder: Path) -> None:
    regions = make(1)
    for x2, problems in ((9.5, 0), (3.0, 1)):
        regions.boxes = torch.tensor([[10.0, 10, x2, 20]])
        save_regions(folder, "9", regions)
        assert len(check(JsonRegions(folder), ["9"])) == problems

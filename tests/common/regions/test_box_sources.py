"""Box sources: boxes by hand, and the errors of files that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from common.detect.sources import build_source
from common.errors import DataError, RegionError
from common.regions.box_sources import CocoBoxes, GridBoxes, ImageEntry, JsonBoxes
from common.regions.json_store import save_regions
from common.regions.regions import Regions

GRAY = Image.new("RGB", (64, 48), (128, 128, 128))


def test_coco_boxes(instances: Path) -> None:
    source = CocoBoxes(str(instances))
    entries = source.entries("set.zip@/train2014")
    assert entries[0] == ImageEntry("9", "set.zip@/train2014/COCO_train2014_000000000009.jpg", (64, 48))
    boxes = [source.boxes(entry, GRAY).boxes.tolist() for entry in entries]
    assert boxes == [[[1.5, 2, 10.5, 21], [50, 40, 63, 47]], [[0, 0, 63, 47]], [[0, 0, 4, 4]]]
    with pytest.raises(ValueError, match=r"is \(10, 10\), its annotation says \(64, 48\)"):
        source.boxes(entries[0], Image.new("RGB", (10, 10)))


def test_classes_of_a_coco_file(instances: Path) -> None:
    content = json.loads(instances.read_text())
    for annotation, category in zip(content["annotations"], (20, 10, 10), strict=True):
        annotation["category_id"] = category
    content["categories"] = [{"id": 10, "name": "dog"}, {"id": 20, "name": "cat"}]
    instances.write_text(json.dumps(content))
    source = CocoBoxes(str(instances), with_classes=True)
    scores = [source.boxes(entry, GRAY).class_scores for entry in source.entries("images")]
    assert [s.tolist() for s in scores if s is not None] == [[[0, 0, 1], [0, 1, 0]], [[1, 0, 0]], [[0, 1, 0]]]
    assert CocoBoxes(str(instances)).boxes(source.entries("")[0], GRAY).class_scores is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r": not valid JSON at line 1"),
        (b"[]", r": expected an object with"),
        ('{"images": [], "info": "caf\xe9"}'.encode("latin-1"), r": byte 27 is no UTF-8"),
    ],
)
@pytest.mark.parametrize("source", [CocoBoxes, JsonBoxes])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, source: Any, content: bytes, message: str) -> None:
    (tmp_path / "broken.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"broken\.json{message}"):
        source(str(tmp_path / "broken.json"))


IMAGE = {"id": 4, "file_name": "a.jpg", "width": 64, "height": 48}
BOX = {"image_id": 4, "bbox": [1, 2, 3, 4], "category_id": 1}


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([7], [], r"images\[0\]: expected an object, got 7"),
        ([{**IMAGE, "width": None}], [], r"images\[0\]: width is None, expected a number"),
        ([{"id": 4, "file_name": "a.jpg", "width": 1}], [], r"images\[0\]: height is nothing, expected a number"),
        ([{**IMAGE, "file_name": 3}], [], r"images\[0\]: file_name is 3, expected text"),
        ([IMAGE, {**IMAGE, "id": 5}], [], r"images\[1\]: another image has the id 5 or the file_name a\.jpg"),
        ([IMAGE, {**IMAGE, "file_name": "b"}], [], r"images\[1\]: another image has the id 4 or the file_name b"),
        ([IMAGE], [BOX, {**BOX, "image_id": 9}], r"annotations\[1\]: no image has the id 9"),
        ([IMAGE], [{"image_id": 4}], r"annotations\[0\]: bbox is nothing, expected a list"),
        ([IMAGE], [{**BOX, "bbox": None}], r"annotations\[0\]: bbox is None, expected a list"),
        ([IMAGE], [{**BOX, "bbox": [1, 2, 3]}], r"annotations\[0\]: bbox must be 4 finite numbers .*\[1, 2, 3\]"),
        ([IMAGE], [{**BOX, "bbox": [1, 2, 3, "4"]}], r"annotations\[0\]: bbox must be 4 finite numbers"),
        ([IMAGE], [{**BOX, "bbox": [float("nan"), 1, 2, 2]}], r"annotations\[0\]: bbox must be 4 finite numbers"),
        ([IMAGE], [{**BOX, "bbox": [float("inf"), 1, 2, 2]}], r"annotations\[0\]: bbox must be 4 finite numbers"),
        ([IMAGE], [{**BOX, "category_id": 2}], r"annotations\[0\]: no category has the id 2"),
    ],
)
def test_a_record_of_coco_that_cannot_be_used_is_named(
    tmp_path: Path, images: list[Any], annotations: list[Any], message: str
) -> None:
    path = tmp_path / "i.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1}]}))
    with pytest.raises(DataError, match=rf"i\.json: {message}"):
        CocoBoxes(str(path), with_classes=True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "expected a list of .* got None"),
        ({"class_scores": [[1]]}, "expected a list of .* got {"),
        ([1, 2, 3, 4], r"boxes: expected shape \[R, 4\], got \[4\]"),
        ([[1, 2, 3]], r"boxes: expected shape \[R, 4\], got \[1, 3\]"),
        ([[1, 2, 3, 4], [1]], "boxes: expected lists of equally many numbers"),
        ([[1, 2, 3, None]], "boxes: expected lists of equally many numbers"),
        ([[0, 0, 1, 1], [float("nan"), 2, 3, 4]], r"boxes\[1\] is \[nan, .*: expected finite numbers"),
        ([[1, 2, float("inf"), 4]], r"boxes\[0\] is .*: expected finite numbers"),
        ({"boxes": [[1, 2, 3, 4]], "class_scores": [1]}, r"class_scores: expected shape \[R, classes\], got \[1\]"),
    ],
)
def test_a_record_of_json_that_cannot_be_used_is_named(tmp_path: Path, value: Any, message: str) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"good": [[1, 2, 3, 4]], "bad": value}))
    with pytest.raises(DataError, match=rf"boxes\.json: 'bad': {message}"):
        JsonBoxes(str(path))


@pytest.fixture
def vcr(tmp_path: Path) -> Path:
    """Two questions about one image of 64 x 48 and one about another, which is missing."""
    folder = tmp_path / "vcr/movie"
    folder.mkdir(parents=True)
    GRAY.save(folder / "a.00.51@0.jpg")
    boxes = [[1.5, 2, 10.5, 21, 0.9], [5, 6, 7, 8, 0.8]]
    (folder / "a.00.51@0.json").write_text(json.dumps({"boxes": boxes, "width": 64, "height": 48}))
    (folder / "b.json").write_text(json.dumps({"boxes": [[1, 2, 3]]}))
    rows = [{"img_fn": f"movie/{n}.jpg", "metadata_fn": f"movie/{n}.json"} for n in ("a.00.51@0", "a.00.51@0", "b")]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path


def test_vcr_boxes(vcr: Path) -> None:
    source = build_source(f"vcr:{vcr}")
    entries = source.entries(f"{vcr.parent}/vcr")
    assert [p.name for p in entries] == ["a.00.51@0", "b"]
    assert entries[0].path == f"{vcr.parent}/vcr/movie/a.00.51@0.jpg"
    assert source.boxes(entries[0], GRAY).boxes.tolist() == [[1.5, 2, 10.5, 21], [5, 6, 7, 8]]
    with pytest.raises(RegionError, match=r"a\.00\.51@0\.jpg is \(48, 64\), its metadata says \(64, 48\)"):
        source.boxes(entries[0], Image.new("RGB", (48, 64)))
    (vcr.parent / "vcr/movie/b.json").write_text('{"boxes": [1, 2]}')
    with pytest.raises(RegionError, match=r"vcr/movie/b\.json: no list of boxes"):
        source.boxes(entries[1], GRAY)
    (vcr.parent / "vcr/movie/b.json").write_text('{"boxes": [[NaN, 2, 3, 4]]}')
    with pytest.raises(RegionError, match=r"vcr/movie/b\.json: boxes have values that are not finite"):
        source.boxes(entries[1], GRAY)
    (vcr.parent / "vcr/movie/b.json").unlink()
    with pytest.raises(RegionError, match=r"vcr/movie/b\.json"):
        source.boxes(entries[1], GRAY)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ('{"img_fn": "a.jpg"}', "line 2: expected img_fn and metadata_fn"),
        (
            '{"img_fn": "x/a.jpg", "metadata_fn": "a.json"}',
            r"line 2: a\.jpg and x/a\.jpg both have the name 'a', but regions are stored by name; rename one",
        ),
        ('{"img_fn": "a.jpg", "metadata_fn": "b.json"}', r"line 2: a\.jpg has the metadata a\.json and b\.json"),
    ],
)
def test_vcr_annotations_that_name_no_images(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"img_fn": "a.jpg", "metadata_fn": "a.json"}\n' + line + "\n")
    with pytest.raises(RegionError, match=rf"train\.jsonl, {message}"):
        build_source(f"vcr:{path}")


def test_json_boxes(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"a": [[1, 2, 3, 4]], "b": {"boxes": [[0, 0, 1, 1]], "class_scores": [[0.5, 0.5]]}}))
    source = build_source(f"json:{path}")
    assert source.boxes(ImageEntry("a", "a.jpg"), GRAY).boxes.tolist() == [[1, 2, 3, 4]]
    assert source.boxes(ImageEntry("b", "b.jpg"), GRAY).class_scores.tolist() == [[0.5, 0.5]]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"boxes\.json has no boxes of c"):
        source.boxes(ImageEntry("c", "c.jpg"), GRAY)


def test_boxes_of_region_files_keep_their_scores(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    save_regions(tmp_path / "old", "a", Regions(torch.ones(1, 4), class_scores=torch.ones(1, 3), width=64, height=48))
    source = build_source(f"regions:{tmp_path}/old")
    assert source.boxes(ImageEntry("a", "a.jpg"), GRAY).class_scores is not None
    with pytest.raises(ValueError, match=r"its regions are of \(64, 48\)"):
        source.boxes(ImageEntry("a", "a.jpg"), Image.new("RGB", (48, 64)))


def test_grid_boxes() -> None:
    got = GridBoxes(1, 2).boxes(ImageEntry("a", "a.jpg"), GRAY).boxes
    assert got.tolist() == [[0, 0, 31, 47], [32, 0, 63, 47]]
    with pytest.raises(ValueError, match="unknown box source 'grid:0'; there are: coco:"):
        build_source("grid:0")

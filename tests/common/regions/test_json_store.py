"""The published JSON of an image's regions."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import RegionError
from common.regions.json_store import read_region_json, write_region_json
from common.regions.regions import FEATURE_DIM
from tests.common.regions.stores import assert_same, make


def test_json_is_the_published_format() -> None:
    boxes = np.array([[1, 2, 3, 4], [5, 6, 7, 8.5]], dtype="<f4")
    record = {"image_id": 9, "image_w": 20, "image_h": 10, "num_boxes": 2}
    record["boxes"] = base64.encodebytes(boxes.tobytes()).decode()  # with line ends
    regions = read_region_json(json.dumps(record).encode(), "9.json")
    assert regions.boxes.tolist() == boxes.tolist()
    assert (regions.width, regions.height) == (20, 10)
    for key in ("features", "image_feature", "class_scores", "attribute_scores"):
        assert getattr(regions, key) is None

    written = json.loads(write_region_json(make(2), "9"))
    assert list(written) == [
        "image_id", "num_boxes", "image_w", "image_h", "boxes", "features", "image_box_feature", "classes", "attrs",
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
    assert got.class_scores is not None and got.attribute_scores is not None


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
        (damaged(attrs="AAAA"), r"attrs has 3 bytes, wanted 3 rows of float32"),
        (damaged(boxes=base64.b64encode(b"\x00\x00\xc0\x7f" * 12).decode()), r"x\.json: box 1 of 3 is not finite"),
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

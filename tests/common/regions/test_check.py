"""The check of a store finds each fault."""

from __future__ import annotations

from pathlib import Path

import torch

from common.regions.check import check
from common.regions.json_store import JsonRegions, save_regions
from tests.common.regions.stores import make


def test_check_finds_each_fault(folder: Path) -> None:
    store = JsonRegions(folder)
    assert check(store) == []
    assert check(store, expected_sizes={"9": (64, 48)}) == []

    (folder / "10.json").write_bytes(b"{")
    bad = make(2)
    bad.features[0, :3] = float("nan")  # type: ignore[index]
    bad.boxes[1] = torch.tensor([5.0, 5, 70, 20])
    bad.class_scores[0] *= 0.5  # type: ignore[index]
    bad.attribute_scores[1] *= 0.5  # type: ignore[index]
    save_regions(folder, "581", bad)
    found = [str(problem) for problem in check(store, [9, 10, 581, 77], {"9": (60, 48)})]
    assert found[0] == "9: image size (64, 48) in the file, expected (60, 48)"
    assert found[1].startswith("10: ") and "no JSON" in found[1]
    assert found[2:] == [
        "581: features has 3 values that are not finite",
        "581: a box lies outside the 64 x 48 image",
        "581: class scores of a box do not sum to 1",
        "581: attribute scores of a box do not sum to 1",
        "77: missing",
    ]


def test_check_reports_inverted_boxes_but_not_thin_ones(folder: Path) -> None:
    regions = make(1)
    for x2, problems in ((9.5, 0), (3.0, 1)):
        regions.boxes = torch.tensor([[10.0, 10, x2, 20]])
        save_regions(folder, "9", regions)
        assert len(check(JsonRegions(folder), ["9"])) == problems

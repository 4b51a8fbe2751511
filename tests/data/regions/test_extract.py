"""Extraction: box sources by hand, the program with a stub for the network, and once for real."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from PIL import Image
from torch import Tensor

from common.detect.sources import build_source
from common.regions.box_sources import CocoBoxes
from common.regions.json_store import JsonRegions
from common.regions.open import open_regions
from data.extract_features import main
from data.regions import extract as region_features
from data.regions.extract import extract

GRAY = Image.new("RGB", (64, 48), (128, 128, 128))


class StubEncoder:
    """A feature that tells the box: its four coordinates, then zeros. Remembers the sizes of its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: Sequence[Image.Image], boxes: Sequence[Tensor]) -> list[Tensor]:
        self.batches.append(len(images))
        return [torch.nn.functional.pad(rows, (0, 2044)) for rows in boxes]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in (9, 25, 30):
        GRAY.save(folder / f"COCO_train2014_{i:012d}.jpg")
    return folder


def test_vcr_boxes_end_in_a_store(tmp_path: Path) -> None:
    """Named by the stem, with the feature of the whole image; what is missing is reported."""
    GRAY.save(tmp_path / "a.00.51@0.jpg")
    boxes = [[1.5, 2, 10.5, 21, 0.9], [5, 6, 7, 8, 0.8]]
    (tmp_path / "a.00.51@0.json").write_text(json.dumps({"boxes": boxes, "width": 64, "height": 48}))
    rows = [{"img_fn": f"{name}.jpg", "metadata_fn": f"{name}.json"} for name in ("a.00.51@0", "b")]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = build_source(f"vcr:{tmp_path}/train.jsonl")
    outcome = extract(source.entries(str(tmp_path)), source, StubEncoder(), tmp_path / "out")
    assert outcome.written == ["a.00.51@0"] and list(outcome.failed) == ["b"]
    got = JsonRegions(tmp_path / "out").regions("a.00.51@0")
    assert got.features[:, :4].tolist() == got.boxes.tolist() == [[1.5, 2, 10.5, 21], [5, 6, 7, 8]]
    assert got.image_feature[:4].tolist() == [0, 0, 63, 47]


# The program


def test_extract_writes_boxes_features_and_whole_image(images: Path, instances: Path, tmp_path: Path) -> None:
    source, encode = CocoBoxes(str(instances)), StubEncoder()
    outcome = extract(source.entries(str(images)), source, encode, tmp_path / "out", batch_size=2, workers=1)
    assert outcome.written == ["9", "25", "30"] and not outcome.failed
    assert encode.batches == [2, 1]
    regions = JsonRegions(tmp_path / "out").regions(9)
    assert (regions.width, regions.height) == (64, 48)
    assert regions.image_feature is not None and regions.image_feature[:4].tolist() == [0, 0, 63, 47]
    assert regions.features is not None and regions.features[:, :4].equal(regions.boxes)


def test_extract_goes_on_after_a_stop(images: Path, instances: Path, tmp_path: Path) -> None:
    source, out = CocoBoxes(str(instances)), tmp_path / "out"
    entries = source.entries(str(images))
    extract(entries, source, StubEncoder(), out)
    (out / "25.json").unlink()
    complete = (out / "30.json").read_bytes()
    (out / "30.json").write_bytes(complete[:500])  # a copy that was cut off
    encode = StubEncoder()
    outcome = extract(entries, source, encode, out)
    assert (outcome.skipped, outcome.written) == (["9"], ["25", "30"])
    assert encode.batches == [1, 1]
    assert (out / "30.json").read_bytes() == complete
    assert sorted(p.name for p in out.iterdir()) == ["25.json", "30.json", "9.json"]


def test_files_named_by_the_stem_are_not_made_again(
    images: Path, tmp_path: Path, stub: StubEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Earlier versions named images of COCO by the stem, unless a COCO file listed them."""
    out = tmp_path / "out"
    args = ["--images", str(images), "--boxes", "grid:2x2", "--out", str(out), "--random-weights", "--workers", "0"]
    assert main(args) == 0
    assert sorted(p.name for p in out.iterdir()) == ["25.json", "30.json", "9.json"]
    for i in (9, 30):
        (out / f"{i}.json").rename(out / f"COCO_train2014_{i:012d}.json")
    (out / "25.json").unlink()
    assert main(args) == 0
    assert "1 written, 2 already there, 0 failed" in capsys.readouterr().out
    assert (out / "25.json").exists() and not (out / "9.json").exists()
    assert main(["--check", str(out), "--images", str(images)]) == 0
    assert "3 images checked, 0 problems" in capsys.readouterr().out


@pytest.mark.parametrize("boxes", ["coco", "grid:2x2"])
def test_two_images_of_one_name_are_refused_before_any_work(
    images: Path, tmp_path: Path, stub: StubEncoder, boxes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    GRAY.save(images / "000000000009.jpg")
    files = ["COCO_train2014_000000000009.jpg", "000000000009.jpg"]
    listed = [{"id": i, "file_name": file, "width": 64, "height": 48} for i, file in enumerate(files)]
    (tmp_path / "coco.json").write_text(json.dumps({"images": listed, "annotations": []}))
    spec = f"coco:{tmp_path}/coco.json" if boxes == "coco" else boxes
    assert main(["--images", str(images), "--boxes", spec, "--out", f"{tmp_path}/out", "--random-weights"]) == 2
    error = capsys.readouterr().err
    assert all(file in error for file in files) and not (tmp_path / "out").exists() and not stub.batches


def test_stop_in_the_middle_leaves_only_whole_files(images: Path, instances: Path, tmp_path: Path) -> None:
    class Stopping(StubEncoder):
        def __call__(self, images: Sequence[Image.Image], boxes: Sequence[Tensor]) -> list[Tensor]:
            if self.batches:
                raise KeyboardInterrupt
            return super().__call__(images, boxes)

    source = CocoBoxes(str(instances))
    with pytest.raises(KeyboardInterrupt):
        extract(source.entries(str(images)), source, Stopping(), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["9.json"]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> StubEncoder:
    encoder = StubEncoder()
    monkeypatch.setattr(region_features, "build_encoder", lambda network, device: encoder)
    return encoder


def arguments(images: Path, instances: Path, tmp_path: Path, *more: str) -> list[str]:
    paths = ["--images", str(images), "--boxes", f"coco:{instances}", "--out", f"{tmp_path}/out"]
    return [*paths, "--random-weights", "--workers", "0", "--device", "cpu", *more]


def test_program_packs_checks_and_converts(
    images: Path, instances: Path, tmp_path: Path, stub: StubEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(images, instances, tmp_path, "--packed", "--dtype", "float16")) == 0
    assert "3 written, 0 already there, 0 failed" in capsys.readouterr().out
    store = open_regions(tmp_path / "out")
    assert store.path.endswith("out.packed") and store.names() == ["25", "30", "9"]
    assert store.meta["info"]["weights"] == "random"  # type: ignore[attr-defined]
    assert main(["--check", f"{tmp_path}/out", "--images", str(images), "--boxes", f"coco:{instances}"]) == 0
    assert "out.packed: 3 images checked, 0 problems" in capsys.readouterr().out
    assert main(["--unpack", f"{tmp_path}/out.packed", "--out", f"{tmp_path}/back"]) == 0
    assert main(["--pack", f"{tmp_path}/back", "--out", f"{tmp_path}/again.packed"]) == 0
    assert open_regions(tmp_path / "again.packed").regions(9).features is not None


def test_broken_and_missing_images_are_reported_not_replaced(
    images: Path, instances: Path, tmp_path: Path, stub: StubEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, missing = images / "COCO_train2014_000000000025.jpg", images / "COCO_train2014_000000000030.jpg"
    broken.write_bytes(broken.read_bytes()[:50])
    missing.unlink()
    assert main(arguments(images, instances, tmp_path, "--packed")) == 1
    printed = capsys.readouterr().out
    assert "1 written, 0 already there, 2 failed" in printed
    assert "FAILED 25: unreadable image" in printed and "FAILED 30: " in printed and "not packed" in printed
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["9.json"]
    assert not (tmp_path / "out.packed").exists()
    assert set(json.loads((tmp_path / "out.info.json").read_text())["failed"]) == {"25", "30"}
    assert main(["--check", f"{tmp_path}/out", "--images", str(images), "--boxes", f"coco:{instances}"]) == 1
    assert "25: missing\n30: missing\n" in capsys.readouterr().out


def test_a_packed_store_left_behind_is_pointed_out(
    images: Path, instances: Path, tmp_path: Path, stub: StubEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(images, instances, tmp_path, "--limit", "1", "--packed")) == 0
    assert main(arguments(images, instances, tmp_path, "--limit", "2")) == 0
    assert "out.packed is older than these files" in capsys.readouterr().out
    assert main(arguments(images, instances, tmp_path, "--packed")) == 0
    assert open_regions(tmp_path / "out").names() == ["25", "30", "9"]


def test_images_come_from_an_archive_too(images: Path, tmp_path: Path, stub: StubEncoder) -> None:
    with ZipFile(tmp_path / "val_image.zip", "w") as file:
        file.write(next(images.iterdir()), "00000007.jpg")
    where = ["--images", f"{tmp_path}/val_image.zip@/", "--boxes", "grid:2x2", "--out", f"{tmp_path}/val_frcnn"]
    assert main([*where, "--random-weights", "--workers", "0"]) == 0
    assert len(open_regions(tmp_path / "val_frcnn").regions("00000007").boxes) == 4


def test_features_made_in_different_ways_are_not_mixed(
    images: Path, instances: Path, tmp_path: Path, stub: StubEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(images, instances, tmp_path, "--limit", "1")) == 0
    assert main(arguments(images, instances, tmp_path, "--layers", "50")) == 2
    assert "other settings (was, now): {'layers': (101, 50)}" in capsys.readouterr().err
    (tmp_path / "out.info.json").unlink()
    assert main(arguments(images, instances, tmp_path)) == 2
    assert "not made here" in capsys.readouterr().err


def test_missing_weights_are_an_error(
    images: Path, instances: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [a for a in arguments(images, instances, tmp_path) if a != "--random-weights"]
    assert main([*args, "--weights", "none.model"]) == 2
    assert "no ResNet weights at none.model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_real_network_end_to_end(
    images: Path, instances: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments(images, instances, tmp_path, "--layers", "50", "--scales", "48", "64", "--limit", "1")
    assert main(args) == 0
    assert "RANDOM WEIGHTS" in capsys.readouterr().out
    regions = JsonRegions(tmp_path / "out").regions(9)
    assert regions.features is not None and regions.features.shape == (2, 2048)
    assert regions.features.isfinite().all() and regions.features.min() >= 0 and regions.features.max() > 0

"""Extraction with the Visual Genome detector: its boxes, scores and features, ready for VQA and for pretraining."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import common.detect.sources as sources
from common.detect.detector import Detector
from common.detect.network import VisualGenomeDetector
from common.nn.parts import Parts
from common.regions.arguments import DetectorLimits
from common.regions.json_store import JsonRegions
from common.regions.open import open_regions
from common.weights.foreign import LoadReport
from data.extract_features import main
from tests.golden.detector import fill_detector

LIMITS = ["--min-boxes", "2", "--max-boxes", "4", "--threshold", "0.2"]


@pytest.fixture(scope="module")
def network() -> VisualGenomeDetector:
    found = VisualGenomeDetector(50, num_proposals=6)
    fill_detector(found, cls_score_gain=2.0)
    return found


@pytest.fixture
def weights(network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weight file that loads as a small network."""

    def load(path: str, parts: Parts) -> tuple[VisualGenomeDetector, LoadReport]:
        return network, LoadReport(path, [])

    monkeypatch.setattr(sources, "load_detector", load)
    (tmp_path / "vg.safetensors").write_bytes(b"weights")
    return tmp_path / "vg.safetensors"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Images of 100 x 20 pixels, and one on its side by its EXIF orientation."""
    folder = tmp_path / "images"
    folder.mkdir()
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    photo = Image.fromarray(small).resize((100, 20), Image.Resampling.BICUBIC)
    photo.save(folder / "COCO_val2014_000000000042.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "turned.png", exif=exif)
    return folder


def extract(images: Path, weights: Path, out: Path, *more: str) -> int:
    return main(["--images", str(images), "--boxes", f"vg:{weights}", "--out", str(out), "--workers", "0", *more])


def test_a_file_has_what_the_detector_found(images: Path, weights: Path, network, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert extract(images, weights, out, *LIMITS, "--packed") == 0
    [found] = Detector(network, DetectorLimits(2, 4, 0.2))([Image.open(images / "COCO_val2014_000000000042.png")])
    for store in (JsonRegions(out), open_regions(f"{out}.packed")):
        assert store.names() == ["42", "turned"]
        regions = store.regions("42").in_memory()
        assert regions.boxes.equal(found.boxes) and regions.features.equal(found.features)
        assert regions.class_scores.equal(found.class_scores) and regions.class_scores.shape[1] == 1601
        assert regions.attribute_scores.equal(found.attribute_scores)
        assert regions.image_feature is None and (regions.width, regions.height) == (100, 20)
        # The published files have the boxes of the stored pixels.
        assert store.regions("turned").boxes.equal(found.boxes)
    assert main(["--check", f"{out}.packed", "--images", str(images)]) == 0


def test_the_same_command_goes_on_and_other_settings_are_refused(images, weights, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert extract(images, weights, out, *LIMITS, "--limit", "1") == 0
    assert extract(images, weights, out, *LIMITS) == 0
    assert "1 written, 1 already there" in capsys.readouterr().out
    settings = json.loads(Path(f"{out}.info.json").read_text())["settings"]
    assert settings["vg"][1:] == [2, 4, 0.2]
    assert extract(images, weights, out) == 2 and "other settings" in capsys.readouterr().err
    weights.write_bytes(b"other weights")
    assert extract(images, weights, out, *LIMITS) == 2 and "other settings" in capsys.readouterr().err


def test_a_cnn_computes_the_features_of_its_boxes(images, weights, tmp_path) -> None:
    out = tmp_path / "out"
    small = ["--random-weights", "--layers", "50", "--scales", "32", "96"]
    assert extract(images, weights, out, *LIMITS, *small, "--limit", "1") == 0
    regions = JsonRegions(out).regions("42")
    assert regions.image_feature is not None and regions.class_scores.shape[1] == 1601


def test_a_detector_finds_the_same_in_bf16(images, weights, network, tmp_path) -> None:
    out = tmp_path / "out"
    assert extract(images, weights, out, *LIMITS, "--precision", "bfloat16", "--limit", "1") == 0
    [exact] = Detector(network, DetectorLimits(2, 4, 0.2))([Image.open(images / "COCO_val2014_000000000042.png")])
    regions = JsonRegions(out).regions("42").in_memory()
    error = (regions.features.mean(0) - exact.features.mean(0)).norm() / exact.features.mean(0).norm()
    assert error < 0.1 and torch.isfinite(regions.features).all()

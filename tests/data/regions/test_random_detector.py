"""Detectors of random weights: complete files, scores that vary between the boxes of an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.detect.sources import build_source
from common.detect.weights import DetectorSizes, from_state, read_detector
from common.regions.box_sources import ImageEntry
from data.random_detector import main
from data.regions.random_detector import random_state

SIZES = DetectorSizes(50, num_classes=30, num_attributes=5)


def image() -> Image.Image:
    """Rectangles of random colours."""
    blocks = np.random.default_rng(3).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((350, 250), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return random_state(SIZES, seed=0)


def test_the_state_is_complete_and_finite(state):
    weights = from_state(state, "random")
    assert weights.sizes == SIZES and weights.unused == [] and weights.state.keys() == state.keys()


def test_the_seed_decides(state):
    again, other = random_state(SIZES, seed=0), random_state(SIZES, seed=1)
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert not any(torch.equal(state[key], other[key]) for key in state if not key.endswith("num_batches_tracked"))


def test_the_file_of_the_visual_genome_detector(tmp_path: Path, capsys):
    out = tmp_path / "a.safetensors"
    assert main(["--out", str(out), "--layers", "50"]) == 0
    assert read_detector(out).sizes == DetectorSizes(50)
    assert "RANDOM weights, seed 0" in capsys.readouterr().out


@pytest.mark.slow
def test_boxes_of_the_visual_genome_detector(state):
    pytest.importorskip("common.detect.detector", reason="the detector is not here")
    from common.detect.detector import Detector
    from common.detect.network import VisualGenomeDetector

    network = VisualGenomeDetector(50, num_classes=30, num_attributes=5)
    network.load_state_dict(state)
    (found,) = Detector(network.eval())([image()])
    assert 10 <= len(found.boxes) <= 100
    assert len(set(found.class_scores[:, 1:].argmax(1).tolist())) > 3
    assert len(set(found.attribute_scores.argmax(1).tolist())) > 1
    assert found.objectness.std() > 0.005


@pytest.mark.slow
def test_boxes_of_the_torchvision_detector(tmp_path: Path):
    assert main(["--out", str(tmp_path / "a.pth"), "--kind", "torchvision"]) == 0
    regions = build_source(f"detector:{tmp_path / 'a.pth'}").boxes(ImageEntry("a", "a.jpg"), image())
    assert 10 <= len(regions.boxes) <= 100
    assert regions.class_scores is not None and regions.class_scores.shape[1] == 91
    assert len(set(regions.class_scores[:, 1:].argmax(1).tolist())) > 3


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--out", "a.pth"], r"has to end in .safetensors for --kind vg"),
        (["--out", "a.safetensors", "--kind", "torchvision"], "has to end in .pth or .pt for --kind torchvision"),
        (["--out", "a.pth", "--kind", "torchvision", "--layers", "101"], "torchvision has 50 layers"),
    ],
)
def test_wrong_arguments(arguments, problem, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert problem in capsys.readouterr().err

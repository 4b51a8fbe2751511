"""Predictors whose boxes, or region features, come from the Visual Genome detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import common.predict.load as load
from common.detect.detector import Detector
from common.detect.network import VisualGenomeDetector
from common.errors import CheckpointError, ConfigError, InputError
from common.predict.load import load_predictor
from common.predict.region_features import DetectorFeatures
from common.regions.arguments import DetectorLimits
from tests.golden.detector import fill_detector

QUESTION = "what color is the star?"
OWN_FEATURES = ["NETWORK.REGION_ENCODER="]  # the checkpoint names another module, which computes other features


@pytest.fixture(scope="module")
def network() -> VisualGenomeDetector:
    found = VisualGenomeDetector(50, num_proposals=6, num_classes=9, num_attributes=5)
    fill_detector(found, cls_score_gain=2.0)
    return found


@pytest.fixture
def loaded(network, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A small network in place of the one in the weight file. Returns the paths that were loaded."""
    paths: list[str] = []

    def build(path: str, limits: DetectorLimits, device: torch.device, precision: torch.dtype) -> Detector:
        paths.append(path)
        return Detector(network, limits, device, precision)

    monkeypatch.setattr(load, "build_detector", build)
    return paths


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of 100 x 20 pixels: the input of the network is 1000 x 200."""
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("photo") / "a.png"
    Image.fromarray(small).resize((100, 20), Image.Resampling.BICUBIC).save(path)
    return path


def test_a_model_of_precomputed_features_takes_those_of_the_detector(vqa_ckpt, loaded, photo):
    limits = DetectorLimits(min_boxes=3, max_boxes=3)
    predictor = load_predictor(vqa_ckpt, overrides=OWN_FEATURES, device="cpu", boxes="vg:file", limits=limits)
    first = predictor(photo, question=QUESTION)
    assert loaded == ["file"] and len(first.boxes) == 4
    user_image = predictor.images.open(photo)
    assert user_image.found is not None and tuple(user_image.found.features.shape) == (3, 2048)
    assert predictor.images.num_extracted == 0  # the whole image has the mean of the regions
    same = predictor(photo, boxes=first.boxes[1:], question=QUESTION)
    assert predictor.images.num_extracted == 0 and same.answers == first.answers
    predictor(photo, boxes=[[1, 2, 30, 18]], question=QUESTION)
    assert predictor.images.num_extracted == 1


def test_features_of_given_boxes_are_those_that_the_detector_finds(vqa_ckpt, loaded, photo):
    """The same boxes, found by the detector or given by the user without a source, have the same answers."""
    found = load_predictor(vqa_ckpt, overrides=OWN_FEATURES, device="cpu", boxes="vg:file")
    given = load_predictor(vqa_ckpt, device="cpu", encoder="vg:file", boxes="grid:2x2")
    first = found(photo, question=QUESTION)
    second = given(photo, boxes=first.boxes[1:], question=QUESTION)
    for a, b in zip(first.answers, second.answers, strict=True):
        assert a["answer"] == b["answer"] and a["probability"] == pytest.approx(b["probability"], abs=1e-4)


def test_a_model_with_another_encoder_takes_the_boxes_alone(vqa_ckpt, loaded, photo):
    predictor = load_predictor(vqa_ckpt, device="cpu", boxes="vg:file")
    predictor(photo, question=QUESTION)
    found = predictor.images.open(photo).found
    assert found is not None and found.features is None and found.class_scores is not None
    assert predictor.images.num_extracted == len(found.boxes) + 1  # the whole image too


def test_masks_are_refused(network):
    with pytest.raises(InputError, match="masks"):
        DetectorFeatures(Detector(network))([], [], masks=[torch.zeros(1, 14, 14)])


def test_wrong_files_are_named(vqa_ckpt, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.caffemodel.*PREPARE_PRETRAINED_MODELS"):
        load_predictor(vqa_ckpt, device="cpu", boxes=f"vg:{tmp_path}/none.caffemodel")
    with pytest.raises(CheckpointError, match="VL-BERT"):
        load_predictor(vqa_ckpt, device="cpu", boxes=f"vg:{vqa_ckpt}")
    with pytest.raises(CheckpointError, match=r"torchvision's fasterrcnn_resnet50_fpn"):
        load_predictor(vqa_ckpt, device="cpu", boxes=f"detector:{vqa_ckpt}")
    with pytest.raises(ConfigError, match="unknown box source 'vgg:a'"):
        load_predictor(vqa_ckpt, device="cpu", boxes="vgg:a")

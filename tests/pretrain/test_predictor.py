"""Masked words and regions of images of users."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.config import load_config
from common.errors import InputError
from common.predict.load import load_predictor
from common.weights import checkpoint
from pretrain.task import TASK
from tests.pretrain.world import CLASSES, tiny_captions_only
from tests.tiny import write_settings

BOXES = [[1, 2, 20, 30], [5, 5, 30, 25]]


def predictor_of(cfg_path: Path, **options):
    cfg = load_config("pretrain", cfg_path, ["NETWORK.VLBERT.initializer_range=0.5"])
    torch.manual_seed(0)
    state = TASK.build_model(cfg).state_dict()
    path = cfg_path.parent / "one.model"
    checkpoint.save_file(path, {"state_dict": state, "config": cfg.to_dict(), "task": "pretrain"})
    return load_predictor(path, device="cpu", **options)


@pytest.fixture
def image(world: Path) -> Path:
    return sorted((world / "val_image").glob("*.jpg"))[0]


@pytest.fixture
def from_features(cfg_path, world):
    return predictor_of(cfg_path, boxes=f"regions:{world}/val_frcnn")


@pytest.fixture
def from_pixels(world, tmp_path):
    return predictor_of(write_settings(tiny_captions_only(world, tmp_path), tmp_path / "pixels.yaml"))


def test_every_mask_is_filled_in(from_features, image):
    got = from_features(image, caption="a [MASK] box near the [MASK].", top_k=3)
    assert [a["mask"] for a in got.answers] == [0, 0, 0, 1, 1, 1]
    assert [s.text for s in got.slots[:9]] == ["[CLS]", "a", "[MASK]", "box", "near", "the", "[MASK]", ".", "[SEP]"]
    assert [r["box"] for r in got.regions] == list(range(1, len(got.boxes)))
    assert got.regions[0]["labels"][0]["label"].startswith("class ")
    assert got.notes == []
    assert "no [MASK]" in from_features(image, caption="a box").notes[0]


def test_names_of_classes(cfg_path, world, image, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"thing {i}" for i in range(CLASSES)))
    predictor = predictor_of(cfg_path, boxes=f"regions:{world}/val_frcnn", labels=tmp_path / "names.txt")
    assert predictor(image, caption="a").regions[0]["labels"][0]["label"].startswith("thing ")
    with pytest.raises(FileNotFoundError, match="names of region classes"):
        predictor_of(cfg_path, labels=tmp_path / "none.txt")


def test_a_hidden_box_looks_different_to_the_model(from_features, image):
    plain = from_features(image, caption="a [MASK] box")
    hidden = from_features(image, caption="a [MASK] box", hide=[1])
    assert plain.answers[0]["probability"] != hidden.answers[0]["probability"]
    for wrong in (0, 99, "1"):
        with pytest.raises(InputError, match="is no number of a box"):
            from_features(image, caption="a", hide=[wrong])
    with pytest.raises(InputError, match="hide: expected a list"):
        from_features(image, caption="a", hide=7)


def test_from_pixels_a_hidden_box_is_blanked(from_pixels, image):
    plain = from_pixels(image, caption="a [MASK] box", boxes=BOXES)
    before = from_pixels.images.num_extracted
    assert from_pixels(image, caption="the [MASK]", boxes=BOXES) and from_pixels.images.num_extracted == before
    hidden = from_pixels(image, caption="a [MASK] box", boxes=BOXES, hide=[2])
    assert from_pixels.images.num_extracted == before + 3  # what an image with a hole in it looks like
    assert plain.answers[0]["probability"] != hidden.answers[0]["probability"]
    assert from_pixels(image, caption="a [MASK] box", boxes=BOXES).answers == plain.answers

"""The user's own captions become files that pretraining reads."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from common.regions.open import open_regions
from data.captions.table import split_words
from tests.data.own.folder import NAMES, Own

CAPTIONS: list[Any] = ["A red box, near the text.", ["a", "Green", "box"], "the box", "A t-shirt"]


def records() -> list[dict[str, Any]]:
    rows = [{"image": name, "caption": caption} for name, caption in zip(NAMES, CAPTIONS, strict=True)]
    return [*rows, {"image": NAMES[0], "caption": "another caption"}]


@pytest.fixture
def own(tmp_path) -> Own:
    own = Own(tmp_path, "pretrain", records())
    images = [{"id": i, "file_name": name, "width": 80 + i, "height": 60} for i, name in enumerate(NAMES)]
    boxes = [{"id": i, "image_id": i, "category_id": 7 + i % 2, "bbox": [20, 20, 31, 26]} for i in range(3)]
    categories = [{"id": 7, "name": "box"}, {"id": 8, "name": "thing"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (own.root / "instances.json").write_text(json.dumps(content))
    return own


def test_boxes_with_classes_are_targets(own):
    assert own.run("--boxes", f"coco:{own.root}/instances.json", "--split", "0.5") == 0
    config = own.config()
    assert config.NETWORK.WITH_MVRC_LOSS and config.NETWORK.VLBERT.visual_region_classes == 3
    train, val = own.dataset("train"), own.dataset("val")
    captions = {dataset.caption(i) for dataset in (train, val) for i in range(len(dataset))}
    assert {"a red box , near the text .", "a green box", "another caption"} < captions and len(captions) == 5
    sample = train.sample(0, Random(1))
    assert sample.image is not None and len(sample.boxes) == 2  # the whole image first
    store = open_regions(own.out / "regions")
    assert store.regions("00000002").class_scores.argmax(1).tolist() == [2]
    assert store.regions("00000004").class_scores.argmax(1).tolist() == [0]  # the whole image, without annotation


def test_boxes_without_classes_have_no_targets(own):
    assert own.run("--encoder", "module:data.scenes.regions", "--boxes", "grid:2x2") == 0
    config = own.config()
    assert not config.NETWORK.WITH_MVRC_LOSS and config.NETWORK.IMAGE_FEAT_PRECOMPUTED
    sample = own.dataset("train").sample(0, Random(1))
    assert sample.features.shape == (5, 2048)


def test_boxes_of_records_have_no_classes(own, capsys):
    own.write([*records(), {"image": NAMES[3], "boxes": [[1, 1, 9, 9]], "caption": "the corner"}])
    assert own.run("--boxes", f"coco:{own.root}/instances.json") == 2
    assert "some images have regions with class scores, others without" in capsys.readouterr().err


def test_captions_that_cannot_be_used(own, capsys):
    rows = [{"image": NAMES[0], "caption": value} for value in (" ", [], ["a", ""], 3)]
    own.write([*rows, {"image": "", "caption": "b"}, {"image": NAMES[0]}])
    assert own.run() == 2
    error = capsys.readouterr().err
    assert all(f"train.jsonl, line {n}:" in error for n in range(1, 7)) and not own.out.exists()
    assert own.run("--test", str(own.write(records(), "test.jsonl"))) == 2
    assert "--test: pretrain has no records of test" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("caption", "words"),
    [("A dog, running.", ["a", "dog", ",", "running", "."]), ("it's  X", ["it", "'", "s", "x"]), (" ", [])],
)
def test_words(caption, words):
    assert split_words(caption) == words

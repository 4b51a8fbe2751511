"""Captions and text of a made-up world: true, varied, in its own words, and readable by pretraining."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

from common.config import load_config
from common.data.text import load_tokenizer
from common.regions.check import check
from common.regions.open import open_regions
from common.task import load_task
from data.scenes.captions import MOST, NUMBERS, caption
from data.scenes.description import COLORS, SHAPES, Scene
from data.scenes.generate import (
    World,
    make_captions,
    make_scenes,
    make_sentences,
)
from data.scenes.phrases import (
    DIRECTIONS,
    Phrase,
    cell,
    cell_name,
    is_beyond,
)
from data.scenes.regions import CLASSES, class_scores
from tests.paths import ROOT
from tests.tiny import write_settings

MANY = World(seed=5, train=150, val=20, test=2)
SIDES = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}


@pytest.fixture(scope="module")
def captions() -> list[tuple[Scene, str]]:
    return [(scene, text) for scene in make_scenes(MANY, "train") for text in make_captions(MANY, scene)]


def phrase(words: str) -> Phrase:
    """ "red stars" -> its phrase."""
    known = [word.removesuffix("s") if word.removesuffix("s") in SHAPES else word for word in words.split()]
    return Phrase(
        next((word for word in known if word in COLORS), None), next((word for word in known if word in SHAPES), None)
    )


def verdict(scene: Scene, fact: str) -> bool | None:
    """Whether a fact is true; None for a kind that this does not know."""
    if match := re.fullmatch(r"the (\w+) is (\w+)", fact):
        things = phrase(match[1]).find(scene)
        known = match[2] in COLORS
        return all(scene.things[i].color == match[2] for i in things) and len(things) == 1 if known else None
    if match := re.fullmatch(r"there (?:is|are) (\w+) ([\w ]+)", fact):
        count = 0 if match[1] == "no" else NUMBERS.index(match[1])
        return len(phrase(match[2]).find(scene)) == count
    if match := re.fullmatch(r"the ([\w ]+) is at the (\w+ \w+)", fact):
        (index,) = phrase(match[1]).find(scene)
        return cell_name(*cell(scene, scene.things[index])) == match[2]
    if match := re.fullmatch(rf"the ([\w ]+) is ({'|'.join(SIDES)}) the (?!middle)([\w ]+)", fact):
        (one,), (other,) = phrase(match[1]).find(scene), phrase(match[3]).find(scene)
        return is_beyond(scene, scene.things[one], scene.things[other], SIDES[match[2]])
    return None


def test_every_side_has_words():
    assert set(SIDES.values()) == set(DIRECTIONS)


def test_captions_are_true(captions):
    found = Counter(
        verdict(scene, fact) for scene, text in captions for fact in re.split(r" , | and ", text) if "image" not in fact
    )
    assert found[False] == 0 and found[True] > 300


def test_the_first_caption_names_everything(captions):
    for scene in make_scenes(MANY, "val"):
        text = make_captions(MANY, scene)[0]
        counts = Counter(thing.color for thing in scene.things)
        for color in COLORS:
            assert (color in text.split()) == (color in counts), text


def test_number_form_and_repetition(captions):
    by_scene = Counter(scene.image_id for scene, _ in captions)
    assert set(by_scene.values()) == set(range(2, MOST + 1))
    assert all(re.fullmatch(r"[a-z,]+( [a-z,]+)*", text) for _, text in captions)
    assert len({text for _, text in captions}) > 0.8 * len(captions)
    scene = captions[0][0]
    assert make_captions(MANY, scene) == make_captions(MANY, scene)
    assert len(set(make_captions(MANY, scene))) == len(make_captions(MANY, scene))


def test_sentences_have_no_image_of_the_world():
    sentences = make_sentences(MANY, "train")
    assert len(sentences) == 300 and all(text.endswith(" .") for text in sentences)
    assert sentences == make_sentences(MANY, "train") and sentences[:40] != make_sentences(MANY, "val")
    assert len(set(sentences)) > 200


def test_every_word_is_in_the_vocabulary(tiny_world):
    tokenizer = load_tokenizer(tiny_world / "bert")
    lines = [" ".join(json.loads(line)["caption"]) for line in (tiny_world / "captions/train_frcnn.json").open()]
    lines += (tiny_world / "corpus/train.txt").read_text().splitlines()
    assert all("[UNK]" not in tokenizer.tokenize(line) for line in lines)


def test_class_scores(tiny_world: Path):
    store = open_regions(tiny_world / "vgbua_res101_precomputed/trainval2014_resnet101_faster_rcnn_genome")
    assert check(store, store.names(), {}) == []
    scores = np.concatenate([store.regions(name).class_scores.numpy() for name in store.names()])
    assert scores.shape[1] == len(CLASSES) == 31
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
    assert len(set(scores.argmax(1))) > 5


def test_the_best_class_is_nearly_always_right():
    hits = []
    for scene in make_scenes(MANY, "train"):
        boxes = np.array([thing.box for thing in scene.things], np.float32)
        best = class_scores(scene, boxes, Random(scene.image_id)).argmax(1)
        hits += [CLASSES[i] == f"{t.color} {t.shape}" for i, t in zip(best, scene.things, strict=True)]
    assert 0.9 < np.mean(hits) < 1


def test_pretraining_reads_them(tiny_world, tmp_path):
    """From features and from the images."""
    files = {f"{split}_ANNOTATION_FILE": str(tiny_world / "corpus/val.txt") for split in ("TRAIN", "VAL", "TEST")}
    settings = {
        "_BASE_": str(ROOT / "cfgs/pretrain/scenes.yaml"),
        "DATASET": [
            {
                "DATASET": "conceptual_captions",
                "DATASET_PATH": str(tiny_world / "captions"),
                "TRAIN_IMAGE_SET": "train",
                "VAL_IMAGE_SET": "val",
                "TEST_IMAGE_SET": "val",
            },
            {"DATASET": "general_corpus", "SEQ_LEN": 32, "MIN_SEQ_LEN": 32, **files},
        ],
        "NETWORK": {"BERT_MODEL_NAME": str(tiny_world / "bert")},
    }
    for changes in ({}, {"NETWORK.IMAGE_FEAT_PRECOMPUTED": False}):
        cfg = load_config("pretrain", write_settings(settings, tmp_path / "tiny.yaml"), changes)
        captions, corpus = load_task("pretrain").build_dataset(cfg, "train")
        sample = captions.sample(0, Random(0))
        assert (sample.image is None) == (not changes) and len(corpus.sample(0, Random(0)).text_ids) > 5


def test_a_caption_needs_no_more_than_a_scene():
    (scene,) = make_scenes(World(seed=1, train=1, val=1, test=1), "train")
    assert 2 <= len(caption(scene, Random(0))) <= MOST

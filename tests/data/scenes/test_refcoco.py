"""Referring expressions of a made-up world: the files are read back, and every expression finds one thing again."""

import json
import pickle
from collections import Counter, defaultdict

import pytest
import torch

from common.files.safe_pickle import load_pickle
from common.regions.check import check
from common.regions.open import open_regions
from data.scenes.description import COLORS, SHAPES, SIZES
from data.scenes.expressions import KINDS
from data.scenes.generate import (
    World,
    make_expressions,
    make_scenes,
    vocabulary,
    write_world,
)

MANY = World(seed=11, train=1600)  # described and referred to, never drawn
SPLITS = ("train", "val", "testA", "testB")


@pytest.fixture(scope="module")
def referred() -> list[tuple]:
    """(scene, number of the thing, expression) of a world of full size."""
    return [
        (scene, i, expression)
        for scene in make_scenes(MANY, "train")
        for i, found in enumerate(make_expressions(MANY, scene))
        for expression in found
    ]


# The files


def references(world) -> list[dict]:
    return json.loads((world / "refcoco+/refs(unc).json").read_text())


def test_pickle_and_json_say_the_same(tiny_world):
    content = (tiny_world / "refcoco+/refs(unc).p").read_bytes()
    assert content[:2] == b"\x80\x02"  # protocol 2, which the first users of the format wrote
    assert load_pickle(tiny_world / "refcoco+/refs(unc).p") == references(tiny_world) == pickle.loads(content)


def test_every_split_has_images_of_its_own(tiny_world):
    images = defaultdict(set)
    for reference in references(tiny_world):
        images[reference["split"]].add(reference["image_id"])
    assert images.keys() == set(SPLITS)
    assert sum(map(len, images.values())) == len(set().union(*images.values())) == 4


def test_references_name_annotations(tiny_world):
    instances = json.loads((tiny_world / "refcoco+/instances.json").read_text())
    assert instances == json.loads((tiny_world / "annotations/instances_train2014.json").read_text())
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    rows = references(tiny_world)
    sentences = [sentence for row in rows for sentence in row["sentences"]]
    assert len({row["ref_id"] for row in rows}) == len({row["ann_id"] for row in rows}) == len(rows)
    assert len({sentence["sent_id"] for sentence in sentences}) == len(sentences)
    for row in rows:
        annotation = annotations[row["ann_id"]]
        assert (row["image_id"], row["category_id"]) == (annotation["image_id"], annotation["category_id"])
        assert row["sent_ids"] == [sentence["sent_id"] for sentence in row["sentences"]]
        for sentence in row["sentences"]:
            assert sentence["tokens"] == sentence["sent"].split()
            assert " ".join(sentence["tokens"]) == sentence["raw"]


def test_store_has_the_annotated_boxes_in_file_order(tiny_world):
    store = open_regions(tiny_world / "refcoco+/regions.packed")
    assert store.meta["dtype"] == "float16"
    assert len(store.names()) == 4
    assert check(store) == []
    boxes = defaultdict(list)
    for annotation in json.loads((tiny_world / "annotations/instances_train2014.json").read_text())["annotations"]:
        x, y, width, height = annotation["bbox"]
        boxes[annotation["image_id"]].append([x, y, x + width, y + height])
    for image_id, wanted in boxes.items():
        regions = store.regions(image_id)
        assert torch.equal(regions.boxes, torch.tensor(wanted))
        assert regions.features.shape == (len(wanted), 2048)
        assert regions.image_feature.shape == (2048,)


def test_detections_find_most_things_and_some_background(tmp_path):
    """w and h count both border pixels, as the detector wrote them."""
    world = World(seed=5, train=40, val=0, test=0)
    write_world(tmp_path, world)
    detections = json.loads((tmp_path / "refcoco+/proposal/res101_coco_minus_refer_notime_dets.json").read_text())
    found = defaultdict(list)
    for detection in detections:
        assert 0 < detection["score"] <= 1
        x, y, w, h = detection["box"]
        found[detection["image_id"]].append((x, y, x + w - 1, y + h - 1))
    assert len({detection["det_id"] for detection in detections}) == len(detections)
    near = total = 0
    for scene in make_scenes(world, "train"):
        assert found[scene.image_id]
        total += len(scene.things)
        for thing in scene.things:
            near += any(
                max(abs(a - b) for a, b in zip(box, thing.box, strict=True)) < 1.6 for box in found[scene.image_id]
            )
    assert 0.8 < near / total < 1
    assert len(detections) > near


# The expressions, understood again by code that shares nothing with the generator


def fitting(scene, words: list[str]) -> list:
    """The things that an attribute phrase fits."""
    things = list(scene.things)
    for word in words:
        if word in SIZES:
            things = [thing for thing in things if thing.size == word]
        elif word in COLORS:
            things = [thing for thing in things if thing.color == word]
        elif word in SHAPES:
            things = [thing for thing in things if thing.shape == word]
        else:
            assert word in ("the", "thing"), word
    return things


def side(scene, thing, name: str) -> float:
    """How far a thing's centre lies towards a side, as a fraction of the image."""
    x, y = thing.center
    return {"left": -x / scene.width, "right": x / scene.width, "top": -y / scene.height, "bottom": y / scene.height}[
        name
    ]


def understood(scene, text: str) -> tuple[list, float]:
    """The things that an expression may mean, and by how much of the image the first of them is the better one."""
    words = text.split()
    for relation, name in (
        ("to the left of", "left"),
        ("to the right of", "right"),
        ("left of", "left"),
        ("right of", "right"),
        ("above", "top"),
        ("over", "top"),
        ("below", "bottom"),
        ("under", "bottom"),
    ):
        if f" {relation} the " in text:
            phrase, anchor_words = text.split(f" {relation} the ")
            (anchor,) = fitting(scene, anchor_words.split())
            candidates = [thing for thing in fitting(scene, phrase.split()) if thing is not anchor]
            beyond = {id(t): side(scene, t, name) - side(scene, anchor, name) for t in candidates}
            there = [t for t in candidates if beyond[id(t)] > 0.15]
            return there, min(abs(value - 0.15) for value in beyond.values())
    for place in ("on the left", "on the right", "at the top", "at the bottom"):
        if text.endswith(f" {place}"):
            words = text.removesuffix(f" {place}").split()
            return extreme(scene, fitting(scene, words), place.split()[-1])
    if words[0] in ("left", "right", "top", "bottom"):
        return extreme(scene, fitting(scene, words[1:]), words[0])
    return fitting(scene, words), 1.0


def extreme(scene, things: list, name: str) -> tuple[list, float]:
    ordered = sorted(things, key=lambda thing: -side(scene, thing, name))
    gap = side(scene, ordered[0], name) - side(scene, ordered[1], name) if len(ordered) > 1 else 1.0
    return ordered[:1], gap


def test_each_expression_means_one_thing(referred):
    for scene, index, expression in referred:
        things, gap = understood(scene, expression.text)
        assert things == [scene.things[index]], (scene.image_id, index, expression)
        assert gap > 0.05, (scene.image_id, index, expression)  # never by a hair


def test_place_and_relation_are_needed(referred):
    """Without its last words an expression of these kinds would fit several things."""
    for scene, _, expression in referred:
        if expression.kind != "look":
            attributes = [w for w in expression.text.split(" the ")[0].split() if w in (*COLORS, *SHAPES)]
            assert len(fitting(scene, attributes)) > 1, expression


def test_things_get_different_expressions_of_different_kinds(referred):
    by_thing = defaultdict(list)
    for scene, index, expression in referred:
        by_thing[scene.image_id, index].append(expression)
    things = sum(len(scene.things) for scene in make_scenes(MANY, "train"))
    assert len(by_thing) > 0.95 * things
    for found in by_thing.values():
        assert len({expression.kind for expression in found}) == len(found) <= 3
    counts = Counter(expression.kind for _, _, expression in referred)
    assert counts.keys() == set(KINDS)
    assert min(counts.values()) > 0.1 * counts.total()


def test_no_expression_means_two_things_of_an_image(referred):
    meant = defaultdict(set)
    for scene, index, expression in referred:
        meant[scene.image_id, expression.text].add(index)
    assert all(len(indices) == 1 for indices in meant.values())


def test_words_are_pieces_of_the_vocabulary(referred):
    assert {word for *_, expression in referred for word in expression.text.split()} <= set(vocabulary())


def test_words_do_not_tell_the_place_in_the_list(referred):
    """The best number by the words alone, learnt from one half of the scenes and tried on the other."""
    seen = defaultdict(Counter)
    train = [r for r in referred if r[0].image_id % 2]
    val = [r for r in referred if not r[0].image_id % 2]
    for scene, index, expression in train:
        for word in expression.text.split():
            seen[word][index / len(scene.things)] += 1
    hits = chance = 0.0
    for scene, index, expression in val:
        count = len(scene.things)
        scores = [
            sum(seen[w][i / count] / max(1, seen[w].total()) for w in expression.text.split()) for i in range(count)
        ]
        hits += scores.index(max(scores)) == index
        chance += 1 / count
    assert hits < 1.1 * chance


def test_expressions_follow_from_the_seed():
    scene = make_scenes(MANY, "train")[0]
    assert make_expressions(MANY, scene) == make_expressions(MANY, scene)
    others = [make_expressions(World(seed=seed, train=4), scene) for seed in range(4)]
    assert any(other != others[0] for other in others[1:])

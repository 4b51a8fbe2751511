"""VCR questions of a made-up world: the files are read back, the choices judged again, the words alone tell nothing."""

import json
import re
from collections import Counter, defaultdict
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from common.regions.check import check
from common.regions.open import open_regions
from data.scenes.generate import (
    SPLITS,
    World,
    make_problems,
    make_scenes,
    vocabulary,
)
from data.scenes.reasoning import pose
from vcr.text import GENDER_NEUTRAL_NAMES, replacement_names

MANY = World(seed=11, train=1500, val=300)  # described and asked about, never drawn
SIZES = {"train": 4, "val": 3, "test": 2}
KINDS = {"what color", "what shape", "which color", "which shape", "same color", "same shape", "where", "which side"}


@pytest.fixture(scope="module")
def posed() -> dict[str, list]:
    """Pairs of scene and problem of a world of full size, by split."""
    splits = ("train", "val")
    return {name: [(s, p) for s in make_scenes(MANY, name) for p in make_problems(MANY, s)] for name in splits}


def rows_of(world, split: str) -> list[dict]:
    return [json.loads(line) for line in (world / f"vcr/{split}.jsonl").read_text().splitlines()]


def metadata_of(world, split: str, row: dict) -> dict:
    return json.loads((world / SPLITS[split].name / row["metadata_fn"]).read_text())


# The files


@pytest.mark.parametrize("split", list(SPLITS))
def test_annotations_belong_to_images_and_metadata(tiny_world, split):
    rows = rows_of(tiny_world, split)
    assert len({row["img_fn"] for row in rows}) == SIZES[split]
    assert len({row["annot_id"] for row in rows}) == len(rows)
    for row in rows:
        metadata = metadata_of(tiny_world, split, row)
        with Image.open(tiny_world / SPLITS[split].name / row["img_fn"]) as image:
            assert image.size == (metadata["width"], metadata["height"])
        assert row["objects"] == metadata["names"]
        assert len(metadata["boxes"]) == len(metadata["segms"]) == len(row["objects"])
        texts = [row["question"], *row["answer_choices"], *row["rationale_choices"]]
        assert len(texts) == 9
        for token in chain(*texts):
            if not isinstance(token, str):
                assert token
                assert all(0 <= number < len(row["objects"]) for number in token)
                assert len(set(token)) == len(token)


@pytest.mark.parametrize("split", list(SPLITS))
def test_only_the_test_split_hides_what_is_right(tiny_world, split):
    hidden = {"answer_label", "rationale_label", "answer_orig", "rationale_orig"}
    for row in rows_of(tiny_world, split):
        assert hidden & row.keys() == (set() if split == "test" else hidden)
        if split != "test":
            assert 0 <= row["answer_label"] < len(row["answer_choices"]) == 4
            assert 0 <= row["rationale_label"] < len(row["rationale_choices"]) == 4


@pytest.mark.parametrize("split", list(SPLITS))
def test_metadata_boxes_enclose_their_polygons(tiny_world, split):
    for row in rows_of(tiny_world, split):
        metadata = metadata_of(tiny_world, split, row)
        for (x1, y1, x2, y2, score), polygons in zip(metadata["boxes"], metadata["segms"], strict=True):
            (polygon,) = polygons
            xs, ys = np.array(polygon).T
            assert np.abs(np.array([xs.min(), ys.min(), xs.max(), ys.max()]) - [x1, y1, x2, y2]).max() <= 1.6
            assert 0.5 < score <= 1


def test_one_store_has_the_boxes_of_all_metadata(tiny_world):
    store = open_regions(tiny_world / "vcr/regions.packed")
    assert store.meta["dtype"] == "float16"
    assert len(store.names()) == sum(SIZES.values())
    assert check(store) == []
    for split in SPLITS:
        for row in rows_of(tiny_world, split):
            metadata = metadata_of(tiny_world, split, row)
            regions = store.regions(row["img_fn"].removesuffix(".jpg"))
            assert torch.equal(regions.boxes, torch.tensor(metadata["boxes"])[:, :4])
            assert (regions.width, regions.height) == (metadata["width"], metadata["height"])
            assert regions.features.shape == (len(regions.boxes), 2048)
            assert regions.image_feature.shape == (2048,)


def test_every_word_is_one_piece_of_the_vocabulary(posed):
    lines = set(vocabulary())
    for _, problem in posed["train"]:
        for text in (problem.question, *problem.answers.texts, *problem.rationales.texts):
            assert {token.lower() for token in text if isinstance(token, str)} <= lines
    assert {name.lower() for name in GENDER_NEUTRAL_NAMES} <= lines


def test_names_of_things_do_not_tell_what_they_are(tiny_world):
    """All things are persons, so their names go by their number alone."""
    for row in rows_of(tiny_world, "train"):
        assert set(replacement_names(row["objects"])) <= set(GENDER_NEUTRAL_NAMES)


# The choices, judged again from their words by code that shares nothing with the generator


def say(tokens) -> str:
    """ "[2] is red ." with things as #2, or #0#3."""
    return " ".join(t if isinstance(t, str) else "".join(f"#{i}" for i in t) for t in tokens)


def has(thing, word: str) -> bool:
    return word in (thing.color, thing.shape, thing.color + "s", thing.shape + "s")


def cell(scene, thing) -> str:
    x, y = thing.center
    row = ("top", "middle", "bottom")[int(3 * y / scene.height)]
    return f"at the {row} {('left', 'center', 'right')[int(3 * x / scene.width)]}"


def holds(scene, text: str) -> bool:
    """Whether a statement is true of a scene."""
    things = [scene.things[int(i)] for i in re.findall(r"#(\d)", text)]
    if m := re.fullmatch(r"#\d is (?:a )?(\w+)(?: (\w+))? \.", text):
        return all(has(things[0], word) for word in m.groups() if word)
    if m := re.fullmatch(r"#\d#\d have the same (color|shape) \.", text):
        return getattr(things[0], m[1]) == getattr(things[1], m[1])
    if m := re.fullmatch(r"#\d#\d are both (\w+) \.", text):
        return all(has(thing, m[1]) for thing in things)
    if m := re.fullmatch(r"#\d is (above|below) #\d , to the (left|right) \.", text):
        (x1, y1), (x2, y2) = (thing.center for thing in things)
        return m[1] == ("above" if y1 < y2 else "below") and m[2] == ("left" if x1 < x2 else "right")
    if m := re.fullmatch(r"#\d is (?:a (\w+) thing )?(at the [a-z ]+) \.", text):
        return cell(scene, things[0]) == m[2] and (m[1] is None or has(things[0], m[1]))
    m = re.fullmatch(r"#\d is (at the [a-z ]+) , #\d (at the [a-z ]+) \.", text)
    return [cell(scene, thing) for thing in things] == [m[1], m[2]]


def implies(rationale: str, answer: str) -> bool:
    """Whether the answer follows from the rationale in words alone, whatever the image."""
    if m := re.fullmatch(r"(#\d) is a (\w+) (\w+) \.", rationale):
        return answer in (f"{m[1]} is {m[2]} .", f"{m[1]} is a {m[3]} .")
    if m := re.fullmatch(r"(#\d#\d) are both (\w+) \.", rationale):
        return answer == f"{m[1]} have the same {'shape' if m[2].endswith('s') else 'color'} ."
    if m := re.fullmatch(r"(#\d) is a \w+ thing (.+) \.", rationale):
        return answer == f"{m[1]} is {m[2]} ."
    m = re.fullmatch(r"(#\d) is at the (.+) , (#\d) at the (.+) \.", rationale)
    rows = [0 if "top" in place else 2 if "bottom" in place else 1 for place in (m[2], m[4])]
    columns = [0 if "left" in place else 2 if "right" in place else 1 for place in (m[2], m[4])]
    vertical = "above" if rows[0] < rows[1] else "below" if rows[0] > rows[1] else None
    horizontal = "left" if columns[0] < columns[1] else "right" if columns[0] > columns[1] else None
    return answer == f"{m[1]} is {vertical} {m[3]} , to the {horizontal} ."


@pytest.mark.parametrize("part", ["answers", "rationales"])
def test_exactly_one_choice_is_true(posed, part):
    for scene, problem in posed["train"] + posed["val"]:
        choices = getattr(problem, part)
        truths = [holds(scene, say(text)) for text in choices.texts]
        assert truths == [i == choices.label for i in range(4)], (scene.image_id, problem)


def test_the_answer_would_follow_from_each_rationale(posed):
    for _, problem in posed["train"]:
        answer = say(problem.answers.texts[problem.answers.label])
        for text in problem.rationales.texts:
            assert implies(say(text), answer), (answer, say(text))


def test_choices_differ_and_have_one_form(posed):
    """The same number of words; what differs are names of things, values, and places."""
    for _, problem in posed["train"]:
        for choices in (problem.answers, problem.rationales):
            texts = [say(text) for text in choices.texts]
            assert len(set(texts)) == 4
            if problem.kind not in ("where", "which side"):
                assert len({len(text.split()) for text in texts}) == 1


def test_problems_of_every_kind_are_common(posed):
    counts = Counter(problem.kind for _, problem in posed["train"])
    assert counts.keys() == KINDS
    assert min(counts.values()) > 0.03 * counts.total()
    assert 5 < counts.total() / MANY.train < 7
    texts = [(scene.image_id, say(problem.question)) for scene, problem in posed["train"]]
    assert len(set(texts)) == len(texts)


def test_problems_follow_from_the_seed():
    from random import Random

    scene = make_scenes(World(seed=3, train=4), "train")[0]
    assert pose(scene, Random(1)) == pose(scene, Random(1))
    assert any(pose(scene, Random(1)) != pose(scene, Random(seed)) for seed in range(2, 6))


# What can be said without looking


@pytest.mark.parametrize("part", ["answers", "rationales"])
def test_labels_are_uniform(posed, part):
    labels = Counter(getattr(problem, part).label for _, problem in posed["train"])
    for count in labels.values():
        assert 0.22 < count / labels.total() < 0.28


def blind_score(train, val, part: str, features) -> float:
    """How often the choice is right whose features were most often those of a right choice in training."""
    right, seen = Counter(), Counter()
    for _, problem in train:
        choices = getattr(problem, part)
        for i, text in enumerate(choices.texts):
            for feature in features(problem, text):
                seen[feature] += 1
                right[feature] += i == choices.label
    hits = 0
    for _, problem in val:
        choices = getattr(problem, part)

        def score(text, problem=problem) -> float:
            rates = [(right[f] + 2.5) / (seen[f] + 10) for f in features(problem, text)]  # a quarter where unseen
            return sum(rates) / len(rates)

        hits += max(range(4), key=lambda i: score(choices.texts[i])) == choices.label  # noqa: B023
    return hits / len(val)


def words(problem, text) -> list[str]:
    return [t for t in say(text).split() if not t.startswith("#")]


def numbers(problem, text) -> list[str]:
    return re.findall(r"#\d", say(text))


def whole(problem, text) -> list[str]:
    return [say(text)]


def after_question(problem, text) -> list[tuple]:
    return [(say(problem.question), say(text))]


def pairs_with_others(problem, text) -> list[tuple]:
    """Each word of the choice with each word of the other choices: would find a right choice made to stand out."""
    everything = [say(t).split() for c in (problem.answers, problem.rationales) if text in c.texts for t in c.texts]
    common = Counter(chain(*everything))
    return [(word, common[word]) for word in say(text).split()]


def agreement(problem, text) -> list[int]:
    """How many words the choice shares with the four of them; a right choice that rivals were made from has most."""
    pool = problem.answers.texts if text in problem.answers.texts else problem.rationales.texts
    counts = Counter(chain(*(set(say(t).split()) for t in pool)))
    return [sum(counts[word] for word in set(say(text).split()))]


@pytest.mark.parametrize("features", [words, numbers, whole, after_question, pairs_with_others, agreement])
@pytest.mark.parametrize("part", ["answers", "rationales"])
def test_blind_guessing_stays_near_chance(posed, part, features):
    usable = lambda split: [p for p in posed[split] if features is not numbers or numbers(p[1], p[1].answers.texts[0])]  # noqa: E731
    assert blind_score(usable("train"), usable("val"), part, features) < 0.31


def test_rivals_are_in_the_image_where_they_can_be(posed):
    """So that it does not help to know which colours there are without knowing whose they are."""
    shares = defaultdict(list)
    for scene, problem in posed["train"]:
        if problem.kind == "what color":
            there = {thing.color for thing in scene.things}
            named = {say(text).split()[2] for text in problem.answers.texts}
            shares[len(there)].append(len(named & there))
    for colors, counts in shares.items():
        assert set(counts) == {min(colors, 4)}

"""The demo runs from nothing to its tables, and its baselines lack what they say they lack."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.demo_refcoco import (
    Reference,
    guess_without_image,
    guess_without_words,
    main,
    ranked,
    read_references,
    right,
)

STAR, HEART = 1, 2
REFERENCE = Reference(
    0,
    "red star",
    "look",
    image_id=1,
    split="train",
    target=1,
    things=((HEART, 400.0), (STAR, 100.0)),
    boxes=((0, 0, 20, 20), (30, 30, 40, 40)),
)


def test_ranks_by_area():
    assert ranked(REFERENCE) == [(HEART, 0, 2), (STAR, 1, 2)]


def test_without_words_the_most_meant_look_is_chosen():
    training = [REFERENCE, REFERENCE, replace(REFERENCE, target=0)]
    other = replace(REFERENCE, text="a heart", things=((STAR, 5.0), (HEART, 50.0)), target=1)
    assert guess_without_words(training, [REFERENCE, other]) == [1, 0]  # small stars, wherever they are in the list


@pytest.mark.parametrize(("text", "number"), [("red star", 1), ("heart", 0), ("new words", 0)])
def test_without_image_the_words_decide(text, number):
    training = [REFERENCE, *[replace(REFERENCE, text="heart", target=0)] * 2]
    assert guess_without_image(training, [replace(REFERENCE, text=text)]) == [number]


def test_right_compares_numbers():
    assert right([REFERENCE, replace(REFERENCE, target=0)], [1, 1]) == [True, False]


def test_references_of_a_world_know_their_things(tiny_world):
    references = read_references(tiny_world)
    records = json.loads((tiny_world / "refcoco+/refs(unc).json").read_text())
    annotations = json.loads((tiny_world / "annotations/instances_train2014.json").read_text())["annotations"]
    areas = {annotation["id"]: annotation["area"] for annotation in annotations}
    targets = {s["sent_id"]: areas[record["ann_id"]] for record in records for s in record["sentences"]}
    assert targets == {r.sent_id: r.things[r.target][1] for r in references}


def test_from_nothing_to_the_table(tmp_path, capsys):
    main(["--fast", "--world", str(tmp_path / "world"), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    for split in ("val", "testA", "testB"):
        assert re.search(rf"^{split} +\d+( +[\d.]+){{5}}$", printed, re.MULTILINE)
    for name in ("model", "results", "images"):
        path = Path(re.search(rf"^{name} +(\S+)", printed, re.MULTILINE)[1])
        assert path.is_file()
        assert tmp_path in path.parents
    scores = json.loads(next((tmp_path / "out").rglob("scores.json")).read_text())
    assert 100 / 5 <= scores["val"]["random"] <= 50  # two to five things

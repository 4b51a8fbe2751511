"""The user's own questions with choices become files that VCR trains on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.data.own.folder import COLORS, NAMES, Own

BOXES = [[20, 20, 51, 46], [60, 5, 75, 15]]
TEXTS = ["[1] is red .", "[2] is red .", ["It", "is", [0, 1], "."], "Nobody is ."]


def records() -> list[dict[str, Any]]:
    return [
        {
            "id": color,
            "image": name,
            "objects": ["person", "dog"],
            "boxes": BOXES,
            "question": f"Is [1] {color} ?",
            "answers": TEXTS,
            "label": i,
            "rationales": list(reversed(TEXTS)),
            "rationale_label": 3 - i,
        }
        for i, (name, color) in enumerate(zip(NAMES, COLORS, strict=True))
    ]


@pytest.fixture
def own(tmp_path) -> Own:
    return Own(tmp_path, "vcr", records())


def test_both_halves_read_what_is_made(own):
    assert own.run("--encoder", "module:data.scenes.regions", "--split", "0.5") == 0
    for file, key in (("vcr_q2a.yaml", "label"), ("vcr_qa2r.yaml", "rationale_label")):
        wanted = {row["id"]: row[key] for row in records()}
        names = {row["annot_id"]: row["id"] for row in own.ids()}
        for split in ("train", "val"):
            dataset = own.dataset(split, file)
            samples = [dataset[i, 0] for i in range(len(dataset))]
            assert {names[s.id]: int(s.targets["label"]) for s in samples} == {
                names[s.id]: wanted[names[s.id]] for s in samples
            }
            assert all(len(s.text_ids) == 4 and s.features.shape == (3, 2048) for s in samples)


def test_answers_alone_make_one_half(own):
    rows = [{k: v for k, v in row.items() if not k.startswith("rationale")} for row in records()]
    own.write(rows)
    assert own.run() == 0
    assert [path.name for path in own.out.glob("*.yaml")] == ["vcr_q2a.yaml"]
    sample = own.dataset("train", "vcr_q2a.yaml")[0, 0]
    assert sample.box_masks.shape[0] == 3 and sample.box_masks[1:].all()  # without outlines the whole box


def test_the_words_of_names_are_in_the_vocabulary(own):
    """Neutral names stand for persons, so they are in no record."""
    assert own.run() == 0
    words = (own.out / "bert/vocab.txt").read_text().split("\n")
    assert {"casey", "riley", "dog", "nobody"} <= set(words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objects": ["person", "unicorn"]}, "object 'unicorn'"),
        ({"objects": ["person"]}, "1 objects for 2 boxes"),
        ({"answers": TEXTS[:3]}, "answers has 3 texts, expected 4"),
        ({"answers": [*TEXTS[:3], "[3] is ."]}, "answers[3]: [2] refers to a box that is not there"),
        ({"label": 4}, "label must be a number from 0 to 3, got 4"),
        ({"label": None}, "label must be a number from 0 to 3, got None"),
        ({"rationale_label": True}, "rationale_label must be a number from 0 to 3, got True"),
        ({"question": ""}, "question must be a text, got ''"),
    ],
)
def test_a_record_that_cannot_be_used(own, capsys, change, message):
    rows = records()
    rows[1] |= change
    own.write(rows)
    assert own.run() == 2
    error = capsys.readouterr().err
    assert f"line 2: {message}" in error and not own.out.exists()


def test_objects_belong_to_the_image(own, capsys):
    other = records()[0] | {"id": "b", "objects": ["dog", "dog"]}
    without = {k: v for k, v in records()[1].items() if not k.startswith("rationale")} | {"id": "c"}
    own.write([*records(), other, without])
    assert own.run() == 2
    error = capsys.readouterr().err
    assert "line 5: other objects than" in error and "line 6: no rationales, though other records have them" in error

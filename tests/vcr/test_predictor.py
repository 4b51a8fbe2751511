"""Choices for images of users; test_task.py compares what an evaluation sees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.config import load_config
from common.errors import InputError
from common.predict.load import load_predictor
from common.weights import checkpoint
from vcr.predictor import parse_text
from vcr.task import TASK
from vcr.text import QA2R

ASKED = {
    "boxes": [[2, 2, 30, 60], [20, 5, 60, 70]],
    "objects": ["person", "dog"],
    "question": "Why is [1] near [2] ?",
    "answers": ["[1] holds [2] .", "[1,2] are happy ."],
}
PIXELS = ["NETWORK.IMAGE_FEAT_PRECOMPUTED=false", "NETWORK.IMAGE_C5_DILATED=false", "DATASET.MASK_SIZE=7"]


@pytest.fixture
def image(shared_world: Path) -> Path:
    return next((shared_world / "vcr1images/movie_wide").glob("*.jpg"))


def predictor_of(cfg_path: Path, *overrides: str):
    cfg = load_config("vcr", cfg_path, [*PIXELS, *overrides])
    torch.manual_seed(0)
    state = TASK.build_model(cfg).state_dict()
    path = cfg_path.parent / "one.model"
    checkpoint.save_file(path, {"state_dict": state, "config": cfg.to_dict(), "task": "vcr"})
    return load_predictor(path, device="cpu")


def test_any_number_of_choices_from_pixels(cfg_path, image):
    predictor = predictor_of(cfg_path)
    got = predictor(image, **ASKED, attention=True)
    assert {a["answer"] for a in got.answers} == set(ASKED["answers"])
    assert sum(a["probability"] for a in got.answers) == pytest.approx(1, abs=1e-5)
    assert got.names == ["image", "1", "2"] and got.attention.shape[-1] == len(got.slots)
    best = got.answers[0]["index"]
    assert ("and" in [s.text for s in got.slots]) == (best == 1)  # the row of the best choice
    three = {**ASKED, "answers": [*ASKED["answers"], "they are ."]}
    assert [len(p.answers) for p in predictor.many([{"image": image, **a} for a in (ASKED, three, ASKED)])] == [
        2,
        3,
        2,
    ]


def test_outlines_matter_and_only_relevant_boxes_are_seen(cfg_path, image):
    predictor = predictor_of(cfg_path)
    plain = predictor(image, **ASKED)
    triangle = [[[2, 2], [30, 2], [2, 60]]]
    square = [[[20, 5], [60, 5], [60, 70], [20, 70]]]
    outlined = predictor(image, **ASKED, polygons=[triangle, square])
    assert plain.answers[0]["probability"] != outlined.answers[0]["probability"]
    predictor = predictor_of(cfg_path, "DATASET.ONLY_USE_RELEVANT_DETS=true")
    only = predictor(image, **{**ASKED, "question": "Why is [2] happy ?", "answers": ["[2] is .", "is ."]})
    assert only.names == ["image", "2"]


class TestRationales:
    @pytest.fixture
    def half(self) -> str:
        return QA2R

    def test_they_belong_to_an_answer(self, cfg_path, image):
        predictor = predictor_of(cfg_path)
        reasons = ["because [2] looks .", "because they are happy .", "and"]
        got = predictor(image, **ASKED, rationales=reasons, answer=2)
        assert {a["answer"] for a in got.answers} == set(reasons)
        other = predictor(image, **ASKED, rationales=reasons, answer=1)
        assert [a["probability"] for a in got.answers] != [a["probability"] for a in other.answers]
        for wrong, message in (({}, "answer is None"), ({"answer": 3}, "which of the 2 answers")):
            with pytest.raises(InputError, match=message):
                predictor(image, **ASKED, rationales=reasons, **wrong)
        with pytest.raises(InputError, match="rationales: missing"):
            predictor(image, **ASKED)


def test_long_texts_are_cut_with_a_note(cfg_path, image):
    predictor = predictor_of(cfg_path)
    assert predictor(image, **ASKED).notes == []
    assert "cut to 64" in predictor(image, **{**ASKED, "question": "Why " * 500}).notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objects": ["person"]}, "1 categories for 2 boxes"),
        ({"objects": ["person", "unicorn"]}, r"objects\[1\] is 'unicorn'"),
        ({"objects": "person"}, "objects: expected a list"),
        ({"objects": ["person", ["person"]]}, r"objects\[1\] is \['person'\]"),
        ({"question": "lone \ud800"}, "question: character 1 is the lone surrogate"),
        ({"polygons": [[[[10**400, 1], [2, 2], [3, 3]]], []]}, r"polygons\[0\]"),
        ({"answers": []}, "at least one choice"),
        ({"answers": ["[3] is"]}, r"answers\[0\].*not there"),
        ({"question": "[0] is"}, "question.*not there"),
        ({"rationales": ["a"]}, "model of Q2A"),
        ({"polygons": [[]]}, "each of the 2 boxes"),
    ],
)
def test_what_cannot_be_answered_is_told(cfg_path, image, changes, message):
    with pytest.raises(InputError, match=message):
        predictor_of(cfg_path)(image, **{**ASKED, **changes})


def test_references_in_strings_are_from_one():
    assert parse_text("Why is [1] near [2, 3] ?", 3, "q") == ["Why", "is", [0], "near", [1, 2], "?"]
    assert parse_text(["Why", [0]], 1, "q") == ["Why", [0]]

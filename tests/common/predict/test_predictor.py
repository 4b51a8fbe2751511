"""Predictions that all tasks have in common. Each task compares its own with an evaluation (task_check)."""

from __future__ import annotations

import json
import re
import sys

import pytest
from PIL import Image

from common.errors import BoxError, ImageError, InputError
from common.predict.load import load_predictor
from tests.labelled import LABELS, labelled_predictor, save_labelled
from tests.tiny import QUESTION


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"question": " "}, InputError, "question: expected a text, got ' '"),
        ({}, InputError, "question: missing"),
        ({"question": "a", "caption": "b"}, InputError, "caption: unknown; vqa takes image, boxes, question"),
        ({"question": "a", "image": None}, InputError, "image: missing"),
        ({"question": "a", "image": "nothing.jpg"}, FileNotFoundError, "nothing.jpg"),
        ({"question": "a", "image": b"text"}, ImageError, "unreadable"),
        ({"question": "a", "boxes": [[5, 5, 1, 1]]}, BoxError, r"boxes\[0\]"),
        ({"question": "\u200b"}, InputError, "no word"),
    ],
)
def test_what_cannot_be_answered_is_told(vqa_predictor, image, asked, error, message):
    with pytest.raises(error, match=message):
        vqa_predictor(**{"image": image, **asked})


def test_a_long_question_is_cut_with_a_note(vqa_predictor, image):
    got = vqa_predictor(image, question="what " * 10000)
    assert got.notes == ["question cut to its first 506 of 10000 word pieces"]
    assert got.answers == vqa_predictor(image, question="what " * 506).answers


def test_features_are_computed_once_for_all_questions(vqa_ckpt, image):
    predictor = load_predictor(vqa_ckpt, device="cpu")
    texts = [QUESTION, "how many circles are there?", "where is the star?"] * 5
    list(predictor.many({"image": image, "question": t} for t in texts))
    found = predictor.images.regions(predictor.images.open(image))
    assert predictor.images.num_extracted == len(found.boxes) + 1  # and the whole image


def test_one_bad_input_does_not_cost_the_others(vqa_predictor, image):
    items = [{"image": image, "question": q} for q in (QUESTION, "", QUESTION)]
    good, bad, again = vqa_predictor.many(iter(items))
    assert isinstance(bad, InputError) and good.answers == again.answers


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
def test_an_image_of_which_resizing_leaves_nothing(vqa_predictor, size):
    with pytest.raises(ImageError, match=f"{size[0]} x {size[1]} pixels is too narrow"):
        vqa_predictor(Image.new("RGB", size), question=QUESTION)


class TestNaN:
    """Damaged weights are an error of every input, never a probability."""

    @pytest.fixture
    def damaged(self, vqa_ckpt):
        predictor = load_predictor(vqa_ckpt, device="cpu")
        next(predictor.model.parameters()).data[:] = float("nan")
        return predictor

    def test_of_one_input(self, damaged, image):
        with pytest.raises(InputError, match="computed NaN"):
            damaged(image, question=QUESTION)

    def test_of_many(self, damaged, image):
        answers = list(damaged.many([{"image": image, "question": QUESTION}] * 2))
        assert [type(a) for a in answers] == [InputError, InputError]


def test_a_fault_of_the_program_costs_one_answer(vqa_ckpt, image, monkeypatch, caplog):
    predictor = load_predictor(vqa_ckpt, device="cpu")
    build = predictor.build
    monkeypatch.setattr(
        predictor, "build", lambda *args: {"a": build}["a" if args[2]["question"] == QUESTION else "b"](*args)
    )
    good, bad = predictor.many([{"image": image, "question": q} for q in (QUESTION, "b")])
    assert good.answers and isinstance(bad, InputError) and "KeyError: 'b'" in str(bad)
    assert "Traceback" in caplog.text


class TestModuleOfTheUser:
    """An exception of its functions is an error of the input, with the place in the module."""

    @pytest.fixture
    def own(self, tmp_path, monkeypatch):
        """Writes the module `own_regions`, and removes it from the imported modules after the test."""
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "own_regions", raising=False)
        yield lambda code: (tmp_path / "own_regions.py").write_text(f"import numpy as np\n\n{code}\n")
        sys.modules.pop("own_regions", None)

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("{}['a']", r"failed: KeyError: 'a' \(own_regions.py, line 4\)"),
            ("np.zeros((len(boxes), 5))", r"returned \[2, 5\]: expected \[2, 2048\]"),
            ("np.full((len(boxes), 2048), np.nan)", "returned NaN"),
            ("'text'", "failed: "),
        ],
    )
    def test_features(self, vqa_ckpt, image, own, code, message):
        own(f"def region_features(image, boxes):\n    return {code}")
        predictor = load_predictor(vqa_ckpt, device="cpu", encoder="module:own_regions", boxes="grid:1x1")
        (answer,) = predictor.many([{"image": image, "question": QUESTION}])
        assert isinstance(answer, InputError) and re.search(message, str(answer))

    @pytest.mark.parametrize(
        ("code", "message"),
        [("1 / 0", "failed: ZeroDivisionError"), ("[[1, 2, 3]]", "failed: "), ("[[0, 0, np.nan, 5]]", r"boxes\[0\]")],
    )
    def test_boxes(self, vqa_ckpt, image, own, code, message):
        own(f"def find_boxes(image):\n    return {code}")
        predictor = load_predictor(vqa_ckpt, device="cpu", boxes="module:own_regions")
        (answer,) = predictor.many([{"image": image, "question": QUESTION}])
        assert isinstance(answer, BoxError) and re.search(message, str(answer))


def test_top_k_and_json(vqa_predictor, image):
    prediction = vqa_predictor(Image.open(image), question=QUESTION, top_k=2)
    assert len(prediction.answers) == 2
    assert json.loads(json.dumps(prediction.to_dict()))["answers"] == prediction.answers


def test_looking_inside_changes_no_answer(vqa_predictor, image):
    plain = vqa_predictor(image, question=QUESTION)
    seen = vqa_predictor(image, question=QUESTION, attention=True, hidden_states=True)
    assert plain.attention is None and plain.hidden_states is None
    for a, b in zip(plain.answers, seen.answers, strict=True):
        assert a["answer"] == b["answer"] and abs(a["probability"] - b["probability"]) < 1e-5


class TestLabels:
    @pytest.fixture
    def predictor(self, vqa_ckpt, image, tmp_path):
        save_labelled(tmp_path / "store", image)
        return labelled_predictor(vqa_ckpt, tmp_path / "store")

    def test_one_for_each_box_of_the_source_and_none_for_the_whole_image(self, predictor, image):
        prediction = predictor(image, question=QUESTION)
        assert prediction.names[0] == "image" and prediction.labels == ["", *LABELS]
        assert prediction.to_dict()["labels"] == prediction.labels

    def test_a_box_of_the_user_has_none_unless_the_source_found_it(self, predictor, image):
        found = predictor(image, question=QUESTION).boxes
        moved = [found[1][0] + 1, *found[1][1:]]
        assert predictor(image, question=QUESTION, boxes=[found[2], moved, found[0]]).labels == ["", LABELS[1], "", ""]

    def test_without_names_the_json_has_no_labels(self, vqa_predictor, image):
        prediction = vqa_predictor(image, question=QUESTION)
        assert not any(prediction.labels) and "labels" not in prediction.to_dict()

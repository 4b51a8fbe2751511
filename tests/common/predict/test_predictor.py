"""Predictions that all tasks have in common. Each task compares its own with an evaluation (task_check)."""

from __future__ import annotations

import json

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

"""Guesses that look at no image, and the table of scores."""

import pytest

from scripts.demos.questions import accuracy_table, guess


def row(question_id: int, question: str, kind: str, answer: str) -> dict:
    return {
        "question_id": question_id,
        "question": question,
        "question_type": kind,
        "multiple_choice_answer": answer,
    }


TRAIN = [
    *(row(i, "Is there a star?", "is there", "yes") for i in range(3)),
    *(row(i, "Is there a heart?", "is there", "no") for i in range(2)),
    *(row(i, "What color is the star?", "what color", "red") for i in range(2)),
]


def test_majority_gives_one_answer_to_everything():
    assert set(guess(TRAIN, TRAIN[-2:], blind=False).values()) == {"yes"}


@pytest.mark.parametrize(
    ("text", "kind", "answer"),
    [
        ("Is there a heart?", "is there", "no"),  # seen words
        ("Is there a circle?", "is there", "yes"),  # seen type
        ("How many?", "how many", "yes"),  # neither
    ],
)
def test_blind_answers_by_words_then_type_then_all(text, kind, answer):
    assert guess(TRAIN, [row(9, text, kind, "?")], blind=True) == {9: answer}


def test_table_ends_with_all_questions():
    score = {"overall": {"accuracy": 75.04, "count": 4}, "question_type": {"left": {"accuracy": 50.0, "count": 2}}}
    lines = accuracy_table({"blind": score, "VL-BERT": score}).split("\n")
    assert lines[0].split() == ["question", "type", "questions", "blind", "%", "VL-BERT", "%"]
    assert lines[1].split() == ["left", "2", "50.0", "50.0"]
    assert lines[-1].split() == ["overall", "4", "75.0", "75.0"]

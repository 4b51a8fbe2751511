import pytest

from vqa.accuracy import CONTRACTIONS, evaluate_answers, normalise_answer, vqa_accuracy


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The Red  Car", "red car"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("an apple, a pear", "apple pear"),
        ("dont know", "don't know"),
        ("somebody'd", "somebodyd"),
        ("oclock", "o'clock"),
        ("10,000", "10000"),
        ("t-shirt", "t shirt"),
        ("the", ""),
        ("one. two", "1 2"),
    ],
)
def test_normalise(text, expected):
    assert normalise_answer(text) == expected


def test_contraction_table_is_lower_case():
    assert all(word == word.lower() for pair in CONTRACTIONS.items() for word in pair)


@pytest.mark.parametrize("said, accuracy", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_accuracy_by_number_of_agreeing_annotators(said, accuracy):
    """Of 10 subsets of 9, `said` lost one who agrees: said=3 gives (3 * 2/3 + 7 * 1) / 10."""
    others = [f"other {i}" for i in range(10 - said)]
    assert vqa_accuracy("yes", ["yes"] * said + others) == pytest.approx(accuracy)


def test_both_sides_are_normalised():
    assert vqa_accuracy("Two", ["2"] * 4 + ["the two."] * 2 + ["three"] * 4) == 1
    assert vqa_accuracy("a t-shirt", ["t shirt"] + ["dress"] * 9) == pytest.approx(0.3)


def test_unanimous_answers_are_compared_as_they_stand():
    assert vqa_accuracy("2", ["two"] * 10) == 0
    assert vqa_accuracy(" left\tside\n", ["left side"] * 10) == 1


def annotation(question_id, answers, answer_type="other", question_type="what"):
    return {
        "question_id": question_id,
        "answer_type": answer_type,
        "question_type": question_type,
        "answers": [{"answer": answer, "answer_id": i + 1} for i, answer in enumerate(answers)],
    }


ANNOTATIONS = [
    annotation(1, ["yes"] * 10, "yes/no", "is the"),
    annotation(2, ["red"] * 3 + ["blue"] * 7),
    annotation(3, ["2"] * 10, "number", "how many"),
    annotation(4, ["cat"] * 10),
]


def test_evaluate():
    result = evaluate_answers({1: "yes", 2: "red", 3: "3", 4: "cat"}, ANNOTATIONS)
    assert result["overall"] == {"accuracy": pytest.approx(100 * 2.9 / 4), "count": 4}
    assert result["answer_type"] == {
        "number": {"accuracy": 0, "count": 1},
        "other": {"accuracy": pytest.approx(95), "count": 2},
        "yes/no": {"accuracy": 100, "count": 1},
    }
    assert result["question_type"]["what"] == {"accuracy": pytest.approx(95), "count": 2}
    assert list(result["question_type"]) == ["how many", "is the", "what"]


def test_evaluate_takes_the_records_of_a_result_file():
    records = [{"question_id": i, "answer": "yes"} for i in (4, 3, 2, 1)]
    assert evaluate_answers(records, ANNOTATIONS)["overall"]["accuracy"] == pytest.approx(25)


def test_question_ids_must_agree():
    with pytest.raises(ValueError, match="2 question ids without a prediction: 2, 4"):
        evaluate_answers({1: "yes", 3: "2"}, ANNOTATIONS)
    with pytest.raises(ValueError, match="6 question ids predicted, but not annotated: 5, 6, 7, 8, 9, ..."):
        evaluate_answers(dict.fromkeys(range(1, 11), "yes"), ANNOTATIONS)
    twice = [{"question_id": i, "answer": "yes"} for i in (1, 2, 3, 4, 4)]
    with pytest.raises(ValueError, match="1 question ids more than once in the predictions: 4"):
        evaluate_answers(twice, ANNOTATIONS)
    with pytest.raises(ValueError, match="more than once in the annotations: 1"):
        evaluate_answers({1: "yes"}, [ANNOTATIONS[0], ANNOTATIONS[0]])

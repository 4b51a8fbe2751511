"""The demo runs from nothing to its table, and the blind baseline looks at words alone."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from scripts.demo_vcr import best, choice_table, guess, main, plain, softmax, words


def row(question: list, choices: list, label: int, kind: str = "what") -> dict:
    return {"question": question, "answer_choices": choices, "answer_label": label, "question_type": kind}


def choices(*colors: str, thing: int = 0) -> list:
    return [[[thing], "is", color, "."] for color in colors]


def test_text_as_it_is_read():
    assert plain(["Where", "is", [2], ",", "seen", "from", [0, 1], "?"]) == "Where is [3], seen from [1] and [2]?"


def test_words_leave_out_which_thing_is_meant():
    assert words(["Is", [2], "red", "?"]) == words(["Is", [0], "red", "?"]) == "Is _ red ?"


def test_blind_takes_what_was_right_after_the_same_question():
    question, other = ["What", "color", "?"], ["Which", "color", "?"]
    training = [row(question, choices("red", "blue", "pink", "green"), 1)] * 2
    training += [row(other, choices("red", "blue", "pink", "green"), 0)] * 5
    asked = choices("green", "red", "pink", "blue", thing=3)
    assert guess(training, [row(question, asked, 0), row(other, asked, 0)], "answer") == [3, 1]


def test_blind_prefers_the_unknown_to_what_was_never_right():
    training = [row(["Q"], choices("red", "blue", "pink", "green"), 0)]
    assert guess(training, [row(["Q"], choices("blue", "pink", "black", "green"), 0)], "answer") == [2]


def test_probabilities():
    assert softmax([0.0, 0.0, 1000.0]) == [0, 0, 1]
    assert sum(softmax([0.3, -2.0, 1.0, 5.0])) == pytest.approx(1)
    assert best([0.1, 0.7, 0.2]) == 1


def test_table_has_every_kind_all_and_chance():
    rows = [row([], [], 0, kind) for kind in ("what", "where", "what", "what")]
    found = {"Q->A": [True, False, True, False], "QA->R": [True] * 4, "Q->AR": [True, False, True, False]}
    lines = choice_table(rows, {"VL-BERT": found}).split("\n")
    assert lines[1].split() == ["what", "3", "66.7", "100.0", "66.7"]
    assert lines[2].split() == ["where", "1", "0.0", "100.0", "0.0"]
    assert lines[3].split() == ["all", "4", "50.0", "100.0", "50.0"]
    assert lines[4].split() == ["chance", "25.0", "25.0", "6.2"]


def test_from_nothing_to_the_table(tmp_path, capsys):
    main(["--fast", "--world", str(tmp_path / "world"), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert re.search(r"^all +\d+( +[\d.]+){6}$", printed, re.MULTILINE)
    for name in ("models", "results"):
        paths = re.search(rf"^{name} +(\S+).*\n +(\S+)", printed, re.MULTILINE).groups()
        assert len({Path(path) for path in paths if Path(path).is_file() and tmp_path in Path(path).parents}) == 2
    sheet = Path(re.search(r"^images +(\S+)", printed, re.MULTILINE)[1])
    with Image.open(sheet) as image:
        assert image.width > 1000
    scores = json.loads(next((tmp_path / "out").rglob("scores.json")).read_text())
    assert scores["VL-BERT"]["Q->AR"] <= min(scores["VL-BERT"]["Q->A"], scores["VL-BERT"]["QA->R"])

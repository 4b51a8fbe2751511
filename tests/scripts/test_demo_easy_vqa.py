"""The demo makes its data as a user would, scores the test split of the package, and groups the questions."""

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from scripts.demo_easy_vqa import as_questions, main, question_type, read_records
from scripts.demos.questions import compare

COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255), "gray": (128, 128, 128)}
IMAGES = {"train": 6, "test": 3}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with the layout of easy_vqa and few images: a coloured rectangle, questions about its colour."""
    folder = tmp_path / "site/easy_vqa"
    for part, count in IMAGES.items():
        (folder / f"data/{part}/images").mkdir(parents=True)
        questions: list[tuple[str, str, int]] = []
        for number in range(count):
            color = list(COLORS)[number % len(COLORS)]
            image = Image.new("RGB", (64, 64), (240, 250, 240 + number))
            ImageDraw.Draw(image).rectangle((10, 12 + number, 30, 40), fill=COLORS[color])
            image.save(folder / f"data/{part}/images/{number}.png")
            questions += [
                ("what color is the shape?", color, number),
                ("what shape is present?", "rectangle", number),
                ("is there a red shape?", "yes" if color == "red" else "no", number),
                ("is there not a red shape?", "no" if color == "red" else "yes", number),
            ]
        (folder / f"data/{part}/questions.json").write_text(json.dumps(questions))
    (folder / "__init__.py").write_text("raise ImportError('only the files of the package are read')")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delitem(sys.modules, "easy_vqa", raising=False)
    return folder


def test_from_nothing_to_the_table(package, tmp_path, capsys):
    arguments = ["--fast", "--data", str(tmp_path / "mine"), "--out", str(tmp_path / "out"), "--seed", "2"]
    main(arguments)
    printed = capsys.readouterr().out
    assert f"$ python -m data.own vqa --input {tmp_path}/mine-records/train.jsonl" in printed
    assert re.search(
        r"^\$ python vqa/train_end2end.py --cfg \S+/mine/vqa.yaml --set .*RNG_SEED=2", printed, re.MULTILINE
    )
    assert re.search(r"^overall +12 +[\d.]+ +[\d.]+ +[\d.]+$", printed, re.MULTILINE)  # the test split, nothing else
    for name in ("model", "results", "images"):
        path = Path(re.search(rf"^{name} +(\S+)", printed, re.MULTILINE)[1])
        assert path.is_file()
        assert tmp_path in path.parents
    scores = json.loads(next((tmp_path / "out").rglob("scores.json")).read_text())
    assert scores["blind"]["question_type"]["what shape"] == {"accuracy": 100.0, "count": 3}

    main(arguments)  # the same data set, and nothing left to train
    assert f"data set {tmp_path}/mine is there\n" in capsys.readouterr().out


def test_another_data_set_in_the_folder_is_an_error(package, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/ids.jsonl").write_text('{"question_id": 1, "id": "train 0"}\n')
    with pytest.raises(SystemExit) as stop:
        main(["--fast", "--data", str(tmp_path / "mine"), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert str(tmp_path / "mine") in error


def test_without_the_package_one_line_names_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(SystemExit) as stop:
        main(["--fast"])
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert "pip install --no-deps easy-vqa" in error


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("what color is the circle?", "what color"),
        ("what is the color of the shape?", "what color"),
        ("what shape does the image contain?", "what shape"),
        ("what is the blue shape?", "what shape"),
        ("is there a red shape in the image?", "is there"),
        ("is there not a circle? ", "is there, not"),
        ("is a red shape present?", "is present"),
        ("is no red shape present? ", "is present, not"),
        ("does the image contain a circle?", "does contain"),
        ("does the image not contain a circle?", "does contain, not"),
    ],
)
def test_question_types(question, kind):
    assert question_type(question) == kind


def test_baselines_and_accuracies_by_type(package):
    """Majority answers "rectangle". Blind knows the shape, and guesses the most frequent answer to other words."""
    train, test = (read_records(package, part, None) for part in IMAGES)
    numbers = {record["id"]: number for number, record in enumerate([*train, *test])}
    training, asked = as_questions(train, numbers), as_questions(test, numbers)
    truth = {question["question_id"]: question["multiple_choice_answer"] for question in asked}
    wrong = dict.fromkeys([q["question_id"] for q in asked if q["question_type"] == "is there"], "maybe")
    scores = compare(training, asked, truth | wrong)
    found = {
        name: {kind: round(s["accuracy"]) for kind, s in {**score["question_type"], "all": score["overall"]}.items()}
        for name, score in scores.items()
    }
    assert found == {
        "majority": {"is there": 0, "is there, not": 0, "what color": 0, "what shape": 100, "all": 25},
        "blind": {"is there": 67, "is there, not": 67, "what color": 33, "what shape": 100, "all": 67},
        "VL-BERT": {"is there": 0, "is there, not": 100, "what color": 100, "what shape": 100, "all": 75},
    }

"""The command line of prediction, through VQA's entry point."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys

import pytest

from common.predict.cli import PredictorOptions, build_parser, predict_main, write_predictions
from common.predict.load import load_predictor
from common.predict.prediction import Prediction
from common.regions.arguments import DetectorLimits
from common.task import load_task
from tests.labelled import LABELS, save_labelled
from tests.tiny import QUESTION
from vqa.fields import FIELDS


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        predict_main("vqa", FIELDS, ["--device", "cpu", *map(str, arguments)])
    return int(end.value.code or 0)


def test_one_question_as_text(vqa_ckpt, vqa_predictor, image, capsys):
    assert run("--ckpt", vqa_ckpt, "--image", image, "--question", QUESTION, "--top-k", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    best = vqa_predictor(image, question=QUESTION).answers[0]
    assert lines[0] == str(image) and len(lines) == 3
    assert lines[1].split() == [f"{100 * best['probability']:.2f}", "%", *best["answer"].split()]


def test_names_of_boxes_as_text(vqa_ckpt, image, tmp_path, capsys):
    save_labelled(tmp_path / "store", image)
    source = f"regions:{tmp_path / 'store'}"
    assert run("--ckpt", vqa_ckpt, "--image", image, "--question", QUESTION, "--boxes", source, "--top-k", 1) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"  boxes: 1 {LABELS[0]}, 2 {LABELS[1]}, 4 {LABELS[3]}"


def test_names_of_many_boxes_are_cut_and_referents_have_theirs(capsys):
    class Named:
        """Answers one item with a referent among twelve boxes, one without it."""

        def many(self, items, batch_size, top_k):
            names, labels = [str(i + 1) for i in range(12)], [f"cat 0.{i + 10}" for i in range(12)]
            boxes = [[0.0, 0, i, i] for i in range(12)]
            for answers in ([{"answer": "box 3", "probability": 1, "box": boxes[2], "index": 2}], []):
                yield Prediction(answers, boxes, names, (20, 20), labels=labels)

    class Options:
        def load(self):
            return Named()

    assert write_predictions(Options(), [{"image": "a"}, {"image": "b"}], None, False, 2, 1) == 0
    referent, plain = capsys.readouterr().out.split("\nb\n")
    assert referent.endswith("box 3  [0.0, 0, 2, 2]  cat 0.12")
    assert plain.startswith("  boxes: 1 cat 0.10, 2 cat 0.11,") and plain.endswith("10 cat 0.19, and 2 more\n")


def test_one_question_as_json_with_boxes(vqa_ckpt, vqa_predictor, image, capsys):
    boxes = "[[1, 2, 30, 40]]"
    assert run("--ckpt", vqa_ckpt, "--image", image, "--question", "a", "--boxes-json", boxes, "--format", "json") == 0
    row = json.loads(capsys.readouterr().out)
    assert row["boxes"][1] == [1, 2, 30, 40] and row["image"] == str(image)
    assert row["answers"] == vqa_predictor(image, question="a", boxes=[[1, 2, 30, 40]]).answers


def test_many_questions_and_a_bad_line(vqa_ckpt, image, tmp_path):
    rows = [
        json.dumps({"id": 7, "image": str(image), "question": QUESTION}),
        "no json",
        "",
        json.dumps([1]),
        json.dumps({"id": 8, "image": "nothing.jpg", "question": "a"}),
        json.dumps({"id": 9, "image": str(image), "question": "how many?"}),
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    out = tmp_path / "out.jsonl"
    assert run("--ckpt", vqa_ckpt, "--input", tmp_path / "in.jsonl", "--output", out, "--batch", 2) == 1
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [a.get("id") for a in answers] == [7, None, None, 8, 9]
    assert ["error" in a for a in answers] == [False, True, True, True, False]
    assert "in.jsonl, line 2" in answers[1]["error"] and "JSON object" in answers[2]["error"]
    assert "nothing.jpg" in answers[3]["error"] and len(answers[4]["answers"]) == 5


def test_stdin_and_text(vqa_ckpt, image, monkeypatch, capsys):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"image": str(image), "question": ""})))
    assert run("--ckpt", vqa_ckpt, "--input", "-", "--format", "text") == 1
    assert "ERROR question: expected a text" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--ckpt", "x"], ["--ckpt", "x", "--image", "a"], ["--ckpt", "x", "--image", "a", "--input", "b"]]
)
def test_a_wrong_command_line(arguments):
    assert run(*arguments) == 2


def test_what_cannot_be_read_is_one_line(vqa_ckpt, tmp_path, capsys):
    assert run("--ckpt", tmp_path / "none.model", "--image", "a.jpg", "--question", "b") == 1
    assert run("--ckpt", vqa_ckpt, "--input", tmp_path / "none.jsonl") == 1


def test_every_flag_arrives_where_it_belongs():
    flags = {"cfg": "c.yaml", "boxes": "grid:2x2", "encoder": "resnet:r", "labels": "l.txt", "device": "cpu"}
    flags |= {"ckpt": "m.model", "precision": "bf16"}
    argv = [text for name, value in flags.items() for text in (f"--{name}", value)]
    argv += ["--min-boxes", "3", "--max-boxes", "5", "--threshold", "0.2"]
    args = build_parser("vqa", FIELDS).parse_args([*argv, "--set", "A=1", "B=2", "--set", "C=3"])
    options = PredictorOptions.from_args(args, "vqa")
    assert vars(options) == {
        **flags,
        "task": "vqa",
        "overrides": ["A=1", "B=2", "C=3"],
        "limits": DetectorLimits(3, 5, 0.2),
    }
    assert vars(options).keys() == inspect.signature(load_predictor).parameters.keys()


@pytest.mark.parametrize("task", ["vqa", "vcr", "refcoco", "pretrain"])
def test_command_line_and_predictor_ask_for_the_same(task):
    fields = importlib.import_module(f"{task}.fields").FIELDS
    assert load_task(task).predictor.fields is fields and load_task(task).predictor.task == task
    build_parser(task, fields)


@pytest.mark.parametrize("module", ["vqa.predict", "vcr.predict", "common.export", "viz.attention", "viz.serve"])
def test_help_does_not_wait_for_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

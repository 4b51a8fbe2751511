"""The command line of prediction, through VQA's entry point."""

from __future__ import annotations

import csv
import importlib
import inspect
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from common.predict.answer_files import csv_rows, format_of
from common.predict.cli import PredictorOptions, build_parser, predict_main, read_lines, write_predictions
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

    assert write_predictions(Options(), [{"image": "a"}, {"image": "b"}], None, "text", 2, 1) == 0
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
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"image": str(image), "question": ""})))
    assert run("--ckpt", vqa_ckpt, "--input", "-", "--format", "text") == 1
    assert "ERROR question: expected a text" in capsys.readouterr().out


class Recorder:
    """Options whose predictor records when each item is taken, and answers with its text."""

    def __init__(self):
        self.events = []

    def load(self):
        return self

    def many(self, items, batch_size, top_k):
        for item in list(items):
            self.events.append(f"answer {item['question']}")
            yield Prediction([{"answer": item["question"], "probability": 1.0}], [], [], (20, 20))

    def items(self, texts):
        for text in texts:
            self.events.append(f"read {text}")
            yield {"image": "a.jpg", "question": text}


def test_inputs_are_read_a_batch_at_a_time(capsys):
    recorder = Recorder()
    assert write_predictions(recorder, recorder.items("abc"), None, "json", 2, 1) == 0
    assert recorder.events == ["read a", "read b", "answer a", "answer b", "read c", "answer c"]
    assert [json.loads(line)["answers"][0]["answer"] for line in capsys.readouterr().out.splitlines()] == [
        "a",
        "b",
        "c",
    ]


def test_an_answer_is_in_the_file_before_the_next_batch_is_read(tmp_path):
    out, seen = tmp_path / "out.jsonl", []

    def items():
        for text in "ab":
            seen.append(out.read_text().count("\n") if out.exists() else None)
            yield {"image": "a.jpg", "question": text}

    write_predictions(Recorder(), items(), str(out), "json", 1, 1)
    assert seen == [None, 1] and out.read_text().count("\n") == 2


def test_lines_end_at_line_feeds_only(tmp_path):
    """U+2028 and other separators of Unicode may stand in a text, and a line that is not UTF-8 spoils no other."""
    file = tmp_path / "in.jsonl"
    text = json.dumps({"question": "one\u2028two\x85"}, ensure_ascii=False)
    file.write_bytes(f"\ufeff{text}\r\n\n".encode() + b'{"question": "\xff"}\n{"question": "last"}')
    first, bad, last = read_lines(str(file))
    assert first == {"question": "one\u2028two\x85"} and last == {"question": "last"}
    assert "in.jsonl, line 3: not UTF-8" in str(bad)


def odd_lines(image: Path) -> dict[str, str]:
    """Lines that cannot be answered, by a part of their error."""
    good = {"image": str(image), "question": "a"}
    return {
        "lone surrogate \\ud83d": json.dumps({**good, "question": "lone \ud83d here"}),
        "no name of a file": json.dumps({**good, "image": "a\0b.jpg"}),
        "surrogates not allowed": json.dumps({**good, "image": "\ud800.jpg"}),
        "too long": json.dumps({**good, "image": "x" * 5000}),
        "is no image": json.dumps({**good, "image": {"a": 1}}),
        "directory": json.dumps({**good, "image": "."}),
        "expected a list of": json.dumps({**good, "boxes": [[0, 0, 10**400, 5]]}),
        "not valid JSON": '{"image": "a.jpg", "question": ' + "1" * 5000 + "}",
        "line 9: nested too deeply": '{"image": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "line 10: NaN": json.dumps({**good, "id": float("nan")}),
        "line 11: NaN": json.dumps({**good, "boxes": [[0, 0, 5, float("inf")]]}),
        "line 12: NaN": '{"image": "a.jpg", "question": "a", "id": 1e400}',
        "outside of the image": json.dumps({**good, "boxes": [[3e9, 3e9, 4e9, 4e9]]}),
        "expected a text": json.dumps({**good, "question": ["a"]}),
    }


class TestOddLines:
    """A line of --input that cannot be answered has an error in its place, and the others have their answers."""

    @pytest.mark.parametrize("form", ["json", "csv", "text"])
    def test_no_line_ends_the_run(self, vqa_ckpt, image, tmp_path, form):
        bad = odd_lines(image)
        last = json.dumps({"id": "\ud83d", "image": str(image), "question": "what\u2028is it?"}, ensure_ascii=False)
        content = "\n".join([*bad.values(), last]).encode("utf-8", "surrogatepass").replace(b"\xed\xa0\xbd", rb"\ud83d")
        (tmp_path / "in.jsonl").write_bytes(content)
        out = tmp_path / "out"
        args = ["--input", tmp_path / "in.jsonl", "--output", out, "--format", form, "--top-k", 1]
        assert run("--ckpt", vqa_ckpt, *args) == 1
        text = out.read_text(encoding="utf-8")
        if form == "json":
            rows = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
            assert len(rows) == len(bad) + 1
            for part, row in zip(bad, rows, strict=False):
                assert part in row["error"] and len(row["error"]) < 300
            assert rows[-1]["id"] == "\ud83d" and len(rows[-1]["answers"]) == 1
        else:
            assert all(part in text for part in bad)

    @pytest.mark.parametrize("box", [[-500, -500, 1, 1], [-5, -5, 0, 20], [5, 5, 1e30, 1e30], [3, 3, 3, 3]])
    def test_the_part_of_a_box_inside_the_image_is_taken(self, vqa_predictor, image, box):
        """The border is that of the resized image, about a pixel from that of the original one."""
        width, height = Image.open(image).size
        inside = [max(box[0], 0), max(box[1], 0), min(box[2], width - 1), min(box[3], height - 1)]
        got, expected = (vqa_predictor(image, question=QUESTION, boxes=[b]).answers[0] for b in (box, inside))
        assert got["answer"] == expected["answer"]
        assert got["probability"] == pytest.approx(expected["probability"], abs=0.05)

    def test_utf_16_is_one_error(self, tmp_path):
        file = tmp_path / "in.jsonl"
        file.write_text('{"image": "a"}\n{"image": "b"}\n', encoding="utf-16")
        (error,) = read_lines(str(file))
        assert str(error) == f"{file}: UTF-16 text: expected UTF-8"


def test_the_output_is_never_the_input(vqa_ckpt, tmp_path, capsys):
    file = tmp_path / "in.jsonl"
    file.write_text("{}\n")
    assert run("--ckpt", vqa_ckpt, "--input", file, "--output", file) == 1
    assert "expected another file than --input" in capsys.readouterr().err and file.read_text() == "{}\n"


def test_a_missing_input_leaves_the_output(vqa_ckpt, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    assert run("--ckpt", vqa_ckpt, "--input", tmp_path / "none.jsonl", "--output", out) == 1
    assert out.read_text() == "old"


class TestImages:
    @pytest.fixture
    def folder(self, image, tmp_path):
        """A folder of two images and a text."""
        folder = tmp_path / "photos"
        folder.mkdir()
        for name in ("b.jpg", "a.JPG"):
            (folder / name).write_bytes(image.read_bytes())
        (folder / "notes.txt").write_text("no image")
        return folder

    def test_several_and_a_folder(self, vqa_ckpt, image, folder, capsys):
        asked = ["--question", QUESTION, "--format", "json", "--batch", 2]
        assert run("--ckpt", vqa_ckpt, "--image", image, folder, *asked) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["image"] for row in rows] == [str(image), str(folder / "a.JPG"), str(folder / "b.jpg")]
        assert rows[0]["answers"] == rows[1]["answers"] == rows[2]["answers"]

    def test_a_folder_without_images(self, vqa_ckpt, tmp_path, capsys):
        (tmp_path / "empty").mkdir()
        assert run("--ckpt", vqa_ckpt, "--image", tmp_path / "empty", "--question", "a") == 1
        assert "empty: no image in this folder: expected .jpg" in capsys.readouterr().err

    def test_boxes_belong_to_one_image(self, vqa_ckpt, folder, capsys):
        assert run("--ckpt", vqa_ckpt, "--image", folder, "--question", "a", "--boxes-json", "[[1, 2, 3, 4]]") == 1
        assert "--boxes-json: expected one image, got 2" in capsys.readouterr().err

    def test_a_url_is_to_be_downloaded(self, vqa_ckpt, image, capsys):
        url = "https://example.org/a.jpg"
        assert run("--ckpt", vqa_ckpt, "--image", url, image, "--question", QUESTION, "--top-k", 1) == 1
        lines = capsys.readouterr().out.splitlines()
        assert lines[1] == f"  ERROR image {url}: a URL: download the image first, and name the file"
        assert lines[2] == str(image) and "ERROR" not in lines[3]


class TestOutput:
    @pytest.fixture
    def source(self, image, tmp_path):
        rows = [{"id": 7, "image": str(image), "question": QUESTION}, {"id": "x", "image": "none.jpg", "question": "a"}]
        (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return tmp_path / "in.jsonl"

    def test_a_json_list(self, vqa_ckpt, source, tmp_path):
        out = tmp_path / "out.json"
        assert run("--ckpt", vqa_ckpt, "--input", source, "--output", out) == 1
        first, second = json.loads(out.read_text())
        assert first["id"] == 7 and len(first["answers"]) == 5
        assert second["id"] == "x" and "none.jpg" in second["error"]
        source.write_text("")
        assert run("--ckpt", vqa_ckpt, "--input", source, "--output", out) == 0 and json.loads(out.read_text()) == []

    def test_csv(self, vqa_ckpt, vqa_predictor, source, image, tmp_path):
        out = tmp_path / "out.csv"
        assert run("--ckpt", vqa_ckpt, "--input", source, "--output", out, "--top-k", 2) == 1
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        best = vqa_predictor(image, question=QUESTION, top_k=2).answers
        assert [(r["id"], r["rank"], r["answer"], r["error"]) for r in rows[:2]] == [
            ("7", "1", best[0]["answer"], ""),
            ("7", "2", best[1]["answer"], ""),
        ]
        assert float(rows[0]["probability"]) == best[0]["probability"] and len(rows) == 3
        assert (rows[2]["id"], rows[2]["image"], rows[2]["rank"]) == ("x", "none.jpg", "")
        assert "none.jpg" in rows[2]["error"]

    def test_csv_of_boxes_and_masks(self):
        answers = [
            {"answer": "a", "probability": 0.6, "mask": 0},
            {"answer": "b", "probability": 0.4, "mask": 0},
            {"answer": "c", "probability": 0.5, "mask": 1},
        ]
        rows = csv_rows({"image": "i"}, Prediction(answers, [], [], (9, 9), notes=["cut", "dark"]))
        assert [(r["mask"], r["rank"]) for r in rows] == [(1, 1), (1, 2), (2, 1)]
        assert rows[0]["notes"] == "cut; dark" and "notes" not in rows[1]
        (row,) = csv_rows({}, Prediction([{"answer": "box 1", "probability": 1, "box": [1, 2, 3, 4]}], [], [], (9, 9)))
        assert [row[k] for k in ("x1", "y1", "x2", "y2")] == [1, 2, 3, 4]

    def test_a_format_that_is_given_wins(self):
        assert format_of("text", "a.csv", "json") == "text" and format_of(None, "a.csv", "json") == "csv"
        assert format_of(None, "a.out", "json") == format_of(None, None, "json") == "json"


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
    argv += ["--min-boxes", "3", "--max-boxes", "5", "--threshold", "0.2", "--max-parameters", "9"]
    args = build_parser("vqa", FIELDS).parse_args([*argv, "--set", "A=1", "B=2", "--set", "C=3"])
    options = PredictorOptions.from_args(args, "vqa")
    assert vars(options) == {
        **flags,
        "task": "vqa",
        "overrides": ["A=1", "B=2", "C=3"],
        "limits": DetectorLimits(3, 5, 0.2),
        "max_parameters": 9,
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

"""docs/add_a_task.md: its blocks build a fifth task in a folder outside of the repository, and every command works."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.paths import ROOT

DOCUMENT = (ROOT / "docs/add_a_task.md").read_text()
BLOCKS = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
CFG = "--cfg cfgs/classify/small.yaml"
# Each is one line: an unknown task, a task without keys, one without needs, a mistyped key, a file that does not exist.
MISTAKES = {
    "unknown": f"python unknown/train_end2end.py {CFG}",
    "keyless": f"python keyless/train_end2end.py {CFG}",
    "needless": f"python -m common.doctor {CFG} --task needless",
    "mistyped": f"python classify/train_end2end.py {CFG} --set DATASET.MAX_WORD=3",
    "missing": f"python -m common.doctor {CFG} --set DATASET.VAL_ANNOTATION_FILE=nothing.jsonl",
}
# Runs commands in one process, because an import of torch takes seconds. Prints [exit status, output] of each.
RUNNER = """
import contextlib, io, json, logging, runpy, shlex, sys, traceback
for line in json.load(sys.stdin):
    words = shlex.split(line)[1:]
    module = words[0] == "-m"
    sys.argv, out, status = words[module:], io.StringIO(), 0
    logging.root.handlers.clear()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            runpy.run_module(words[1], run_name="__main__") if module else runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        except Exception:
            status = traceback.print_exc() or 1
    print(json.dumps([status, out.getvalue()]), flush=True)
"""


def commands(script: str) -> list[str]:
    return [line for line in script.replace("\\\n", " ").splitlines() if line.strip()]


DOCUMENTED = [command for kind, _, text in BLOCKS if kind == "bash" for command in commands(text)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the task, with the files of the document and three incomplete tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    assert ROOT not in folder.parents
    files = {name: text for _, name, text in BLOCKS if name}
    for task in ("unknown", "keyless"):
        files[f"{task}/train_end2end.py"] = files["classify/train_end2end.py"].replace("classify", task)
    for task in ("keyless", "needless"):
        files[f"{task}/task.py"] = (
            f"import dataclasses, classify.task\nTASK = dataclasses.replace(classify.task.TASK, name={task!r})\n"
        )
    files["needless/keys.py"] = "from classify.keys import KEYS\n"
    for name, text in files.items():
        path = folder / name
        assert folder in path.resolve().parents
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, tuple[int, str]]:
    """Exit status and output of every command of the document, then of every mistake, by command."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    lines = [*DOCUMENTED, *MISTAKES.values()]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        cwd=folder,
        env=environment,
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        timeout=600,
    )
    outcomes = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(outcomes) == len(lines), f"{lines[len(outcomes)]}\n{done.stderr[-3000:]}"
    return dict(zip(lines, outcomes, strict=True))


def output_of(results: dict[str, tuple[int, str]], *words: str) -> str:
    """The output of the command that contains all words; there must be just one."""
    [found] = [output for line, (_, output) in results.items() if all(word in line for word in words)]
    return found


@pytest.mark.parametrize("command", DOCUMENTED)
def test_every_command_of_the_document_works(results, command):
    status, output = results[command]
    assert status == 0, output


def test_the_files_of_the_document_are_short():
    code = [text for kind, name, text in BLOCKS if kind == "python" and name.startswith("classify/")]
    lines = [line for text in code for line in text.splitlines()]
    assert len(code) == 12 and len([x for x in lines if x and not x.startswith(("import ", "from "))]) <= 180


def test_the_doctor_opens_what_the_config_names(results):
    output = output_of(results, "common.doctor", "--deep")
    assert "ok       train data: classify 191 records, 20 made into samples" in output
    assert "ok       regions world/vgbua_res101_precomputed" in output and "\n0 problems\n" in output


def test_the_model_report_finds_no_problem(results):
    output = output_of(results, "model_report")
    assert output.count("| classify/small ") == 3 and "PROBLEM" not in output


def test_training_resumes_and_tests(results, folder):
    run = folder / "output/small/scenes_train"
    assert "going on from" not in results[DOCUMENTED[4]][1]
    log = (run / "small.log").read_text()
    assert "going on from" in log and "LabelLoss" in log and (run / "small-best.model").is_file()
    rows = [json.loads(line) for line in (folder / "output/small/scenes_test/small.jsonl").read_text().splitlines()]
    lines = [json.loads(line) for line in (folder / "world/classify/test.jsonl").read_text().splitlines()]
    labels = (folder / "world/classify/labels.txt").read_text().splitlines()
    assert [row["id"] for row in rows] == [line["id"] for line in lines] and {row["label"] for row in rows} <= {*labels}


def test_a_predictor_answers_with_labels(results, folder):
    answers = re.findall(r"^ +[\d.]+ %  (.+)$", output_of(results, "classify.predict"), re.MULTILINE)
    assert len(answers) == 5
    assert {*answers} <= {*(folder / "world/classify/labels.txt").read_text().splitlines()}


def test_an_exported_model_is_a_program(results, folder):
    about = json.loads((folder / "classify.json").read_text())
    assert about["task"] == "classify" and about["outputs"] == ["label_logits"]
    program = torch.export.load(folder / "classify.pt2")
    assert len(program.graph_signature.user_inputs) == len(about["inputs"])


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        (
            "unknown",
            1,
            "unknown task 'unknown': there is no unknown/task.py; the tasks here are classify, ",
        ),
        ("keyless", 1, "task 'keyless': there is no keyless/keys.py, which must define KEYS"),
        ("mistyped", 1, "overrides: DATASET.MAX_WORD: unknown key in classify; did you mean DATASET.MAX_WORDS?"),
        ("needless", 1, "cannot be used: task 'needless': there is no needless/needs.py, which must define needs"),
        ("missing", 1, "missing: world/classify/nothing.jsonl"),
    ],
)
def test_a_mistake_is_one_line(results, name, status, message):
    found, output = results[MISTAKES[name]]
    assert found == status and "Traceback" not in output
    assert any(message in line for line in output.splitlines()), output

"""docs/onnx_example.py answers as the predictor does, in a process that cannot import this repository or PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.predict.export import export
from tests.labelled import labelled_predictor, save_labelled
from tests.paths import ROOT
from tests.test_requirements import SHIPPED

QUESTION = "What colour is the BIG circle, café?"
# sys.modules[name] = None makes an import of the name fail.
START = (
    "import runpy, sys; sys.modules.update(dict.fromkeys({hidden!r})); runpy.run_path('example.py', None, '__main__')"
)


@pytest.fixture
def folder(vqa_ckpt: Path, image: Path, tmp_path: Path) -> Path:
    """The example, an exported model, an image and its regions, and nothing else."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"no {package}: docs/onnx_example.py was not run")
    save_labelled(tmp_path / "store", image, "photo")
    (tmp_path / "photo.jpg").write_bytes(image.read_bytes())
    (tmp_path / "example.py").write_text((ROOT / "docs/onnx_example.py").read_text())
    export(labelled_predictor(vqa_ckpt, tmp_path / "store"), tmp_path / "model/model.onnx")
    return tmp_path


def run(folder: Path, model: str, question: str) -> subprocess.CompletedProcess[str]:
    code = START.format(hidden=[*SHIPPED, "tests", "torch", "transformers"])
    words = [sys.executable, "-c", code, model, "--image", "photo.jpg", "--regions", "store/photo.json"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    asked = [*words, "--question", question, "--top-k", "4"]
    return subprocess.run(asked, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("model", ["model/model.onnx", "model"])
def test_the_answers_are_those_of_the_predictor(folder, vqa_ckpt, model):
    predictor = labelled_predictor(vqa_ckpt, folder / "store")
    expected = predictor(str(folder / "photo.jpg"), question=QUESTION, top_k=4).answers
    done = run(folder, model, QUESTION)
    assert done.returncode == 0, done.stderr
    found = [line.split("\t") for line in done.stdout.splitlines()]
    assert [name for _, name in found] == [a["answer"] for a in expected]
    assert [float(p) for p, _ in found] == pytest.approx([a["probability"] for a in expected], abs=1e-4)


def test_bad_input_is_one_line(folder):
    assert run(folder, "model", " ").stderr == "--question: there is no word in it\n"

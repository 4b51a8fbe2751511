"""The commands and Python blocks of the documents run as they stand, on the output of the demos."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.scenes.generate import World, write_world
from tests.paths import ROOT
from tests.test_docs import DOCUMENTS
from tests.test_imports import TASKS

CODE = ("common", "viz", "scripts", "cfgs", "benchmarks", *TASKS)
NETS = [
    ("vqa", "scenes.yaml"),
    ("refcoco", "scenes.yaml"),
    ("pretrain", "scenes.yaml"),
    ("vcr", "scenes_q2a.yaml"),
]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


RUNNABLE = [(document, block) for document in DOCUMENTS for block in blocks(document, "sh")]
PYTHON = [(document, block) for document in DOCUMENTS for block in blocks(document, "python")]


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    """A copy of the repository after the demos, with a smaller world and models trained for two updates."""
    folder = tmp_path_factory.mktemp("docs") / "repository"
    folder.mkdir()
    for name in CODE:
        (folder / name).symlink_to(ROOT / name)
    (folder / "data").mkdir()
    for file in (ROOT / "data").glob("*.py"):
        shutil.copy(file, folder / "data")
    for package in (ROOT / "data").glob("*/__init__.py"):
        (folder / "data" / package.parent.name).symlink_to(package.parent)
    write_world(folder / "data/scenes-world", World(train=40, val=8, test=2))
    fast = ["TRAIN.MAX_STEPS=2", "TRAIN.WARMUP_STEPS=1", "NUM_WORKERS_PER_GPU=0", "DEVICE=cpu"]
    for task, cfg in NETS:
        run(folder, f"python {task}/train_end2end.py --cfg cfgs/{task}/{cfg} --set {' '.join(fast)}")
    return folder


def run(folder: Path, script: str, python: str = sys.executable) -> None:
    """Run shell commands with this Python first on the path."""
    environment = {
        **os.environ,
        "PATH": f"{Path(python).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-euc", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def test_there_are_some():
    assert sum(block.count("python ") for _, block in RUNNABLE) >= 10 and PYTHON


@pytest.mark.slow
@pytest.mark.parametrize(("document", "block"), RUNNABLE, ids=lambda v: " ".join(v.split())[:60])
def test_commands(document, block, demos):
    run(demos, block)


@pytest.mark.slow
@pytest.mark.parametrize(("document", "block"), PYTHON, ids=lambda v: " ".join(v.split())[:60])
def test_python(document, block, demos, tmp_path):
    (tmp_path / "example.py").write_text(block)
    run(demos, f"python {tmp_path}/example.py")

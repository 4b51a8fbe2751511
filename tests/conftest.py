"""Fixtures of several test files."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.config import load_config
from common.predict.load import load_predictor
from common.predict.predictor import Predictor
from common.task import load_task
from common.weights import checkpoint
from data.scenes.generate import World, write_world
from tests.cli import Command, Error, error_line, root_logger_restored, run_script
from tests.paths import KIT
from tests.small_disk import SmallDisk
from tests.tiny import tiny_vqa, write_settings


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    """One thread: threads that wait for each other on busy cores take a hundred times as long for tiny models."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    with root_logger_restored():
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of 1 MB, which needs the right to mount."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"FULL DISK NOT TESTED: cannot mount a tmpfs: {getattr(error, 'stderr', '') or error}")
    yield SmallDisk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def cfg_path(settings: dict, tmp_path: Path) -> Path:
    """The YAML of a tiny run. settings: a fixture of the task's tests, which a test may change before."""
    return write_settings(settings, tmp_path / "tiny.yaml")


@pytest.fixture
def arguments() -> list[object]:
    """The arguments that `command` puts before those of a call. Tests of a task override it."""
    return []


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, arguments: list[object]) -> Command:
    """Runs a script with `arguments` and those of the call inside this process, and returns its exit status."""
    return lambda script, *args: run_script(monkeypatch, script, *arguments, *args)


@pytest.fixture
def error(command: Command, capsys: pytest.CaptureFixture[str]) -> Error:
    """Runs a script that must end with exit status 1 and one error line, and returns the line's message."""

    def run(script: str, *args: object) -> str:
        assert command(script, *args) == 1
        return error_line(capsys.readouterr().err)

    return run


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up world of a dozen images in the formats of the real data."""
    folder = tmp_path_factory.mktemp("world") / "world"
    write_world(folder, World(seed=3, train=4, val=3, test=2), force=False)
    return folder


@pytest.fixture(scope="session")
def kit() -> Path:
    """Real data beside the checkout. A test that needs it is skipped without it."""
    if not KIT.is_dir():
        pytest.skip(f"no data kit in {KIT}: this test on real data did not run")
    return KIT


@pytest.fixture(scope="session")
def vqa_ckpt(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VQA checkpoint with random weights, whose config names the module that finds boxes and computes features."""
    folder = tmp_path_factory.mktemp("vqa")
    settings = tiny_vqa(tiny_world, folder)
    settings["NETWORK"]["REGION_ENCODER"] = "module:data.scene_regions"
    settings["NETWORK"]["VLBERT"]["initializer_range"] = 0.4  # so that attention is not nearly uniform
    cfg = load_config("vqa", write_settings(settings, folder / "tiny.yaml"))
    torch.manual_seed(1)
    content = {"state_dict": load_task("vqa").build_model(cfg).state_dict(), "config": cfg.to_dict(), "task": "vqa"}
    checkpoint.save_file(folder / "tiny.model", content)
    return folder / "tiny.model"


@pytest.fixture(scope="session")
def vqa_predictor(vqa_ckpt: Path) -> Predictor:
    return load_predictor(vqa_ckpt, device="cpu")


@pytest.fixture(scope="session")
def image(tiny_world: Path) -> Path:
    """One of the world's images."""
    return sorted((tiny_world / "val2014").glob("*.jpg"))[0]


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    """Image 9 with two boxes, one reaching out of the image; image 25 with none; image 30 with a crowd."""
    content = {
        "images": [
            {"id": i, "file_name": f"COCO_train2014_{i:012d}.jpg", "width": 64, "height": 48} for i in (9, 25, 30)
        ],
        "annotations": [
            {"image_id": 9, "bbox": [1.5, 2, 10, 20], "iscrowd": 0},
            {"image_id": 30, "bbox": [0, 0, 5, 5], "iscrowd": 1},
            {"image_id": 9, "bbox": [50, 40, 30, 30], "iscrowd": 0},
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path

"""Which errors of an entry point are one line, and which keep their traceback."""

from __future__ import annotations

import dataclasses
import logging
import re
import runpy
import signal
import sys
from collections.abc import Callable

import pytest
import torch
import yaml

from common.cli import gpu_key, guarded, guarded_on, load_run_config, one_line, overrides
from common.config import load_config, replace
from common.errors import CheckpointError, ConfigError, DataError, ImageError, RegionError
from common.files.atomic import write_text
from common.train.signals import Stopped
from tests.test_imports import ROOT
from tests.tiny import tiny_vqa, write_settings
from vqa.task import TASK


@pytest.fixture(autouse=True)
def _logging():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def raises(error: Exception) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


class TestGuarded:
    @pytest.mark.parametrize(
        "error",
        [
            *[kind("a\n  line") for kind in (ConfigError, CheckpointError, DataError, ImageError, RegionError)],
            FileNotFoundError("a line"),
            FloatingPointError("a line"),
            yaml.YAMLError("a line"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_what_the_user_can_mend_is_one_line(self, error, capsys):
        assert guarded(raises(error)) == 1
        err = capsys.readouterr().err
        assert re.fullmatch(r"\S+ E common\.cli: a line\n", err)

    def test_a_full_disk_is_one_line_that_names_the_file(self, small_disk, capsys):
        path = small_disk.folder / "results.json"
        write_text(path, "old")
        small_disk.fill(free=4096)
        assert guarded(write_text, path, "new" * 9000) == 1
        err = capsys.readouterr().err
        assert re.fullmatch(r"\S+ E common\.cli: \[Errno 28\] No space left on device: '\S+/results.json'\n", err)
        assert path.read_text() == "old" and {p.name for p in small_disk.folder.iterdir()} == {"results.json", "filler"}

    @pytest.mark.parametrize("error", [ValueError("of torch"), RuntimeError("x"), KeyError("x")])
    def test_other_errors_keep_their_traceback(self, error):
        with pytest.raises(type(error)) as raised:
            guarded(raises(error))
        assert raised.value is error

    def test_arguments_and_status(self):
        seen = []
        assert guarded(lambda *args, **kwargs: seen.append((args, kwargs)), 1, "x", key=2) == 0
        assert seen == [((1, "x"), {"key": 2})]

    def test_a_stopped_run(self):
        assert guarded(raises(Stopped(signal.SIGTERM))) == 128 + signal.SIGTERM

    def test_an_error_of_a_worker_of_a_loader(self):
        text = "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        assert one_line(DataError(f"{text}  File ...\ncommon.errors.DataError: x.json: no such key")) == (
            "x.json: no such key"
        )

    def test_a_gpu_that_is_not_there(self, monkeypatch, capsys):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert guarded_on([0, 2], raises(AssertionError("not called"))) == 1
        assert capsys.readouterr().err.endswith("--gpus 2: there are 2 GPUs, counted from 0\n")


class TestBuilders:
    """A builder raises ConfigError for settings that contradict each other; a ValueError is a fault of the program."""

    @pytest.fixture
    def cfg(self, tiny_world, tmp_path):
        return load_config("vqa", write_settings(tiny_vqa(tiny_world, tmp_path), tmp_path / "tiny.yaml"))

    def task(self, error: Exception):
        def build(cfg):
            raise error

        return dataclasses.replace(TASK, modules={"ResNetVLBERT": build})

    def test_settings_at_odds(self, cfg, capsys):
        assert guarded(self.task(ConfigError("A and B")).build_model, cfg) == 1
        assert "E common.cli: A and B" in capsys.readouterr().err

    def test_a_fault_of_the_program(self, cfg):
        error = ValueError("embed_dim must be positive")
        with pytest.raises(ValueError, match="embed_dim") as raised:
            guarded(self.task(error).build_model, cfg)
        assert raised.value is error and not isinstance(raised.value, ConfigError)

    def test_an_unknown_module(self, cfg):
        with pytest.raises(ConfigError, match="MODULE 'ResNetVLBERT': vqa has Other"):
            dataclasses.replace(TASK, modules={"Other": TASK.modules[cfg.MODULE]}).build_model(cfg)

    def test_regions_in_chunks_with_batch_statistics(self, cfg):
        changed = replace(cfg, {"NETWORK.ROI_CHUNK": 4, "NETWORK.IMAGE_FROZEN_BN": False})
        with pytest.raises(ConfigError, match="ROI_CHUNK and CHECKPOINT_ROIS need NETWORK.IMAGE_FROZEN_BN true"):
            TASK.build_model(changed)


@pytest.mark.parametrize(
    "script",
    [
        *[f"{task}/train_end2end.py" for task in ("vqa", "vcr", "refcoco", "pretrain")],
        *[f"{task}/test.py" for task in ("vqa", "vcr", "refcoco")],
        "vqa/val.py",
        "vcr/val.py",
        "vcr/check_submission.py",
        "scripts/launch.py",
    ],
)
def test_help_needs_no_torch(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    loaded = {name for name in sys.modules if name.split(".")[0] in ("torch", "numpy", "common", "vqa", "vcr")}
    with monkeypatch.context() as patch:
        for name in loaded:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "torch", None)
        with pytest.raises(SystemExit) as status:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    assert status.value.code == 0 and "usage: " in capsys.readouterr().out


class TestConfigOfACommandLine:
    def test_flags_come_after_set(self):
        flags = {"TEST.BATCH_IMAGES": 0, "GPUS": gpu_key([2, 3]), "DATASET.TEST_IMAGE_SET": None}
        assert overrides(["GPUS=1"], flags) == ("GPUS=1", "TEST.BATCH_IMAGES=0", "GPUS=2,3")

    def test_no_gpus(self):
        assert gpu_key(None) is None and gpu_key([]) is None and gpu_key([0]) == "0"

    def test_load(self, tiny_world, tmp_path):
        path = write_settings(tiny_vqa(tiny_world, tmp_path / "out"), tmp_path / "tiny.yaml")
        assert load_run_config("vqa", path) == load_config("vqa", path)
        cfg = load_run_config("vqa", path, ("TRAIN.LR=0.5", "OUTPUT_PATH=out"), "models")
        assert cfg.TRAIN.LR == 0.5 and cfg.OUTPUT_PATH == "models/out"

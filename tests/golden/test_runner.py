"""The reference numbers in the repository, and the runner itself: it must notice a number that is off."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.golden import models
from tests.golden.__main__ import main
from tests.golden.core import case_name, find_cases

CASES = Path(__file__).parent / "cases"
SMALL = ("D_tasks/vqa_2fc", "E_optim/adamw_wd", "E_optim/lr_schedules")
NAMES = [case_name(path) for path in find_cases(CASES)]
QUICK = {  # the others take some seconds each, group F all of them
    *(name for name in NAMES if name[0] in "EG"),
    "A_encoder/noln_same_size",
    "B_pretraining_heads/all_heads",
    "C_fast_rcnn/precomputed_semantic",
    "D_tasks/pretrain_single_precomputed",
    "D_tasks/vcr_blind",
    "H_manifests/vqa_base_4x16G_fp32",
    "J_checkpoints/partial_vqa",
}


@pytest.fixture(autouse=True)
def _log_level():
    """The runner silences the package's log, which other tests read."""
    logger = logging.getLogger("common")
    level = logger.level
    yield
    logger.setLevel(level)


def test_every_group_has_cases():
    assert {name[0] for name in NAMES} == set("ABCDEFGHJ") and {name[0] for name in QUICK} == set("ABCDEGHJ")
    assert set(NAMES) >= QUICK


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES])
def test_case(name, capsys):
    assert main([str(CASES), "--only", f"{name}*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"PASS {name}  ") for line in lines)  # not skipped
    assert lines[-1].endswith(" 0 failed, 0 skipped")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Small cases in a folder of their own."""
    folder = tmp_path / "golden"
    for name in SMALL:
        for suffix in (".json", ".npz"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CASES / f"{name}{suffix}", folder / f"{name}{suffix}")
    return folder


def test_a_copy_passes(copy, capsys):
    assert main([str(copy)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in out[:-1]] == [["PASS", name] for name in SMALL]
    assert out[-1] == "3 passed, 0 failed, 0 skipped"


def change_arrays(path: Path, changes: dict) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    for name, change in changes.items():
        arrays[name] = change(arrays[name].copy())
    np.savez(path, **arrays)


def one_value(factor: float):
    """The largest value of an array a little off."""

    def change(array: np.ndarray) -> np.ndarray:
        array[np.unravel_index(np.abs(array).argmax(), array.shape)] *= factor
        return array

    return change


@pytest.mark.parametrize(
    ("array", "change"),
    [
        ("out.linear", one_value(1.0001)),
        ("out.linear", lambda a: a[:-1]),
        ("out.linear", lambda a: a * np.nan),
        ("out.multistep", lambda a: a[::-1]),
    ],
    ids=["one rate", "shape", "nan", "order"],
)
def test_a_tampered_array_is_noticed(copy, capsys, array, change):
    change_arrays(copy / "E_optim/lr_schedules.npz", {array: change})
    assert main([str(copy), "--only", "E_"]) == 1
    out = capsys.readouterr().out
    assert "FAIL E_optim/lr_schedules" in out and f"     {array}" in out
    assert "1 passed, 1 failed, 0 skipped" in out


def test_a_tampered_model_case_is_noticed_everywhere(copy, capsys):
    """A value, a shape, a gradient norm, and an output under a name that our side does not know."""
    change_arrays(
        copy / "D_tasks/vqa_2fc.npz",
        {"eval.label_logits": one_value(1.001), "train.label_logits": lambda a: a[:, :-1]},
    )
    path = copy / "D_tasks/vqa_2fc.json"
    content = json.loads(path.read_text())
    gradient = max(content["grad_norm"], key=content["grad_norm"].get)
    content["grad_norm"][gradient] *= 1.01
    entry = next(o for o in content["outputs"] if o["array"] == "eval.label_logits")
    content["outputs"].append({**entry, "array": "eval.other_logits"})
    path.write_text(json.dumps(content))
    assert main([str(copy), "--only", "D_"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split(":")[0].strip() for line in lines[1:-1]) == sorted(
        ["eval.label_logits", "train.label_logits", f"grad {gradient}", "eval.other_logits"]
    )
    assert lines[-1] == "0 passed, 1 failed, 0 skipped"


def test_an_adapter_that_raises_is_one_failed_case(copy, capsys):
    (copy / "E_optim/adamw_wd.npz").unlink()
    assert main([str(copy), "--only", "E_"]) == 1
    out = capsys.readouterr().out
    assert "FAIL E_optim/adamw_wd" in out and "raised" in out and "1 passed, 1 failed, 0 skipped" in out


def test_a_class_that_does_not_exist_yet_is_skipped_by_name(copy, capsys, monkeypatch):
    real = models.importlib.import_module

    def without_vqa(name, *args):
        if name == "vqa.module":
            raise ModuleNotFoundError(name)
        return real(name, *args)

    monkeypatch.setattr(models.importlib, "import_module", without_vqa)
    assert main([str(copy)]) == 0
    out = capsys.readouterr().out
    assert "SKIP D_tasks/vqa_2fc  vqa ResNetVLBERT" in out.splitlines()
    assert "2 passed, 0 failed, 1 skipped" in out


def test_no_case_is_a_failure(copy, capsys, tmp_path):
    assert main([str(copy), "--only", "E_*/adamw*"]) == 0
    assert "1 passed, 0 failed, 0 skipped" in capsys.readouterr().out
    assert main([str(copy), "--only", "Z_"]) == 1
    assert "no cases" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 1


def test_a_group_without_adapter_fails(tmp_path, capsys):
    (tmp_path / "Q_new").mkdir()
    (tmp_path / "Q_new/case.json").write_text("{}")
    assert main([str(tmp_path)]) == 1
    assert "no adapter for group Q_new" in capsys.readouterr().out

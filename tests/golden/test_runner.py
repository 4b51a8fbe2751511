"""The reference numbers in the repository, and the runner itself, which must fail where a number is off."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.data.sample import ModelOutput
from common.metrics import Accuracy, Mean, MetricGroup
from refcoco.metrics import ClsAccuracy, RefAccuracy
from tests.golden import models, tasks
from tests.golden.__main__ import main
from tests.golden.accuracies import Accuracies, near_decisions
from tests.golden.core import Report, case_name, find_cases
from vqa.metrics import SoftAccuracy

CASES = Path(__file__).parent / "cases"
SMALL = ("D_tasks/vqa_2fc", "E_optim/adamw_wd", "E_optim/lr_schedules")
NAMES = [case_name(path) for path in find_cases(CASES)]
QUICK = {  # the others take some seconds each, group F all of them
    *(name for name in NAMES if name[0] in "EGL"),
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
    """The runner sets the level of the package's log, which other tests read."""
    logger = logging.getLogger("common")
    level = logger.level
    yield
    logger.setLevel(level)


def test_every_group_has_cases():
    assert {name[0] for name in NAMES} == set("ABCDEFGHJL") and {name[0] for name in QUICK} == set("ABCDEGHJL")
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
    results = [line.split()[:2] for line in out[:-1] if not line.startswith("     ")]
    assert results == [["PASS", name] for name in SMALL]
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
    assert sorted(line.split(":")[0].strip() for line in lines[1:5]) == sorted(
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


def test_a_group_without_adapter_is_skipped_with_the_reason(copy, capsys):
    """That is no success: without a case that passes, the exit status is 1."""
    (copy / "Q_new").mkdir()
    (copy / "Q_new" / "case.json").write_text("{}")
    assert main([str(copy), "--only", "E_*/adamw*"]) == 0
    assert main([str(copy), "--only", "*/case"]) == 1
    lines = capsys.readouterr().out.splitlines()[2:]
    assert lines == [
        "SKIP Q_new/case  no adapter yet: group Q_new is unknown",
        "0 passed, 0 failed, 1 skipped",
    ]


# ---------------------------------------------------------------------------------------------- outputs in part


@pytest.fixture
def one_case(tmp_path: Path) -> Callable[[str], Path]:
    """Copies a stored case into a folder of its own, and returns its JSON."""

    def copied(name: str) -> Path:
        folder = tmp_path / "golden" / Path(name).parent
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in (".json", ".npz"):
            shutil.copy(CASES / f"{name}{suffix}", folder)
        (tmp_path / "golden/vocab").symlink_to(CASES / "vocab")
        return folder / f"{Path(name).name}.json"

    return copied


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def result(path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of a case: its result first, then failures and notes."""
    main([str(path.parents[1])])
    return capsys.readouterr().out.splitlines()[:-1]


@pytest.mark.parametrize("noted", [False, True], ids=["key", "note"])
def test_an_output_stored_in_part(one_case, capsys, noted):
    """By `<output>_stride` or by a note: every 8th number of the last axis. One of them that is off is noticed."""
    path = one_case("C_fast_rcnn/precomputed_semantic")

    def strided(content: dict) -> None:
        for entry in content["outputs"]:
            if entry["array"].endswith("obj_reps_raw"):
                content |= {} if noted else {"obj_reps_raw_stride": 8}
                entry |= {"note": "last axis subsampled ::8"} if noted else {}

    change_json(path, strided)
    change_arrays(path.with_suffix(".npz"), {"eval.obj_reps_raw": lambda a: a[..., ::8]})
    assert result(path, capsys)[0].startswith("PASS")
    change_arrays(path.with_suffix(".npz"), {"eval.obj_reps_raw": one_value(1.01)})
    lines = result(path, capsys)
    assert lines[0].startswith("FAIL") and lines[1].startswith("     eval.obj_reps_raw: ")


def test_entries_that_a_case_does_not_have(one_case, capsys):
    """Without `proj` there is no train loss, and so no gradient."""
    path = one_case("C_fast_rcnn/precomputed_semantic")

    def without_loss(content: dict) -> None:
        content["inputs"] = [i for i in content["inputs"] if i["name"] not in ("proj", "images", "mvrc_ops")]
        content["outputs"] = [o for o in content["outputs"] if o["array"] != "train.loss"]
        del content["grad_norm"], content["no_grad"]

    change_json(path, without_loss)
    assert result(path, capsys)[0].startswith("PASS")


def test_an_output_that_is_none_and_one_that_is_not(one_case, capsys):
    path = one_case("B_pretraining_heads/mlm_mvrc_no_rel")

    def swapped(content: dict) -> None:
        for entry in content["outputs"]:
            if entry["array"] == "eval.mvrc_logits":
                entry["value"] = None

    assert result(path, capsys)[0].startswith("PASS")  # it has no relationship head
    change_json(path, swapped)
    assert result(path, capsys)[1].startswith("     eval.mvrc_logits is None: ")


def test_heads_that_are_switched_off_have_no_labels(one_case, capsys):
    """Our module runs without the targets of such a head. Only numbers that depend on them differ from the stored."""
    path = one_case("D_tasks/pretrain_single_precomputed")
    off = ("mlm_logits", "mlm_label", "relationship_logits", "relationship_label")

    def switch_off(content: dict) -> None:
        content["config_overrides"] |= {"NETWORK.WITH_MLM_LOSS": False, "NETWORK.WITH_REL_LOSS": False}
        for entry in content["inputs"]:
            if entry["name"] in ("mlm_labels", "relationship_label"):
                del entry["array"]
                entry["value"] = None
        entries = {o["array"]: o for o in content["outputs"]}
        content["outputs"] = [{"array": f"{m}.{name}", "value": None} for m in ("eval", "train") for name in off]
        content["outputs"] += [entries[f"eval.mvrc_{name}"] for name in ("logits", "label", "loss")]
        del content["grad_norm"], content["no_grad"]

    change_json(path, switch_off)
    assert result(path, capsys)[0].startswith("PASS")


# ---------------------------------------------------------------------------------------------- both paths


@pytest.mark.parametrize(("factor", "outcome"), [(1.0, "PASS"), (1.01, "FAIL")])
def test_a_drift_of_the_optimised_path_fails(copy, capsys, monkeypatch, factor, outcome):
    """Here it is a factor in the logits, which the plain path does not have."""
    build, plain = tasks.task_builder("ResNetVLBERT", "vqa"), tasks.plain
    monkeypatch.setattr(tasks, "task_builder", lambda name, task: lambda cfg: scaled(build(cfg), factor))
    monkeypatch.setattr(tasks, "plain", lambda _, cfg: plain(build, cfg))
    main([str(copy), "--only", "D_"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{outcome} D_tasks/vqa_2fc")
    failures = [line for line in lines if line.startswith(f"     {tasks.FAST}: eval.label_logits: ")]
    assert len(failures) == (outcome == "FAIL")


def scaled(model: nn.Module, factor: float) -> nn.Module:
    def scale(module: nn.Module, args: object, output: ModelOutput) -> None:
        output.predictions["label_logits"] = output.predictions["label_logits"] * factor

    model.register_forward_hook(scale)
    return model


# ---------------------------------------------------------------------------------------------- accuracies


def accuracies_of(logits: list[list[float]], stored: float) -> Report:
    """One iteration of three samples with label 0, against a stored accuracy."""
    report = Report()
    compared = Accuracies(MetricGroup([Accuracy()]), report)
    compared.update({"label_logits": torch.tensor(logits), "label": torch.zeros(len(logits), dtype=torch.int64)})
    compared.compare(5, {"Acc": stored})
    compared.compare(6, {"Acc": stored})  # the same sample again is no news
    return report


def test_a_sample_that_nearly_ties_may_differ():
    report = accuracies_of([[1.0, 0.0], [2.0, 2.00001], [3.0, 1.0]], 3 / 3)
    assert report.failures == [] and report.worst == 0
    assert report.notes == [
        "metric Acc at 5: differs by 1 of 3 samples, 1 of which have two best scores that nearly tie"
    ]


@pytest.mark.parametrize(("second", "stored"), [([2.0, 2.1], 3 / 3), ([2.0, 2.00001], 1 / 3 - 1 / 3)])
def test_other_samples_may_not(second, stored):
    report = accuracies_of([[1.0, 0.0], second, [3.0, 1.0]], stored)
    samples, near = round(abs(2 / 3 - stored) * 3), int(second[1] < 2.05)
    assert report.failures == [
        f"metric Acc at 5: differs by {samples} of 3 samples, {near} of which have two best scores that nearly tie"
    ]


def test_equal_accuracies_pass_and_losses_are_numbers():
    assert accuracies_of([[1.0, 0.0], [2.0, 2.1], [3.0, 1.0]], 2 / 3).failures == []
    report = Report()
    compared = Accuracies(MetricGroup([Mean("ans_loss")]), report)
    compared.update({"ans_loss": torch.tensor(2.0)})
    compared.compare(0, {"ans_loss": 2.1})
    assert len(report.failures) == 1 and "times the tolerance" in report.failures[0]


@pytest.mark.parametrize(
    ("metric", "values", "near"),
    [
        (ClsAccuracy(), {"label_logits": [[5e-5, 1.0, -5e-5]], "label": [[1.0, 0.0, -1.0]]}, 1),
        (RefAccuracy(), {"label_logits": [[1.0, 1.00005, 0.0], [1.0, 2.0, 0.0]], "label": [[1.0, 0, 0]] * 2}, 1),
        (Accuracy(choices=2), {"label_logits": [1.0, 1.00005, 0.0, 3.0], "label": [1.0, 0, 0, 1]}, 1),
        (SoftAccuracy(), {"label_logits": [[1.0, 2.0]], "label": [[0.3, 1.0]]}, 0),
    ],
    ids=["signs", "regions", "rows of choices", "soft labels"],
)
def test_near_decisions(metric, values, near):
    assert near_decisions(metric, {name: torch.tensor(value) for name, value in values.items()}) == near

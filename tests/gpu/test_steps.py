"""Training, evaluation, resuming, forecast and region features of every task on tensors that report cuda:0."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import fake_gpu
from tests.gpu.forms import FORMS, PRECISIONS
from tests.gpu.waits import measured, read_table
from tests.paths import ROOT

RENEW = "python -m tests.gpu.waits writes the table anew"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
WITH_VALUES = [name for name, form in FORMS.items() if form.values]
WITHOUT = [name for name in FORMS if name not in WITH_VALUES]
PIXELS = [name for name in WITH_VALUES if "pixels" in name]


@pytest.fixture(scope="module")
def found_with_values(shim: Path) -> dict[str, Any]:
    return measured(WITH_VALUES, shim)


@pytest.fixture(scope="module")
def found_without(shim: Path) -> dict[str, Any]:
    return measured(WITHOUT, shim)


@pytest.fixture(params=[*WITH_VALUES, *(pytest.param(name, marks=pytest.mark.slow) for name in WITHOUT)])
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def found(form: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.getfixturevalue("found_with_values" if form in WITH_VALUES else "found_without")[form]


def case(found: dict[str, Any], title: str) -> dict[str, Any]:
    """The observations of a case. A case that raised, as for tensors of two devices, fails the test."""
    assert "error" not in found[title], found[title]["error"]
    return found[title]


def allowed_of(form: str) -> dict[str, Any]:
    """The entries of the table for a form."""
    table = read_table()
    assert form in table, f"waits.json has no {form}: {RENEW}"
    return table[form]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_batch_waits_only_at_the_places_of_the_table(form, found, precision):
    seen, allowed = case(found, f"training {precision}"), allowed_of(form)
    assert seen["batch"]["waits"] == allowed["batch"]["waits"], RENEW
    assert seen["update"]["waits"] == allowed[f"update {precision}"]["waits"], RENEW


def test_an_evaluation_batch_waits_only_at_the_places_of_the_table(form, found):
    seen = case(found, "evaluation")
    assert seen["waits"] == allowed_of(form)["evaluation"]["waits"], RENEW
    assert seen["metrics"] == 1  # one copy for all metrics of a split


def test_a_step_launches_no_more_kernels_than_the_table_allows(form, found):
    allowed = allowed_of(form)
    assert case(found, "training bf16")["batch"]["kernels"] <= allowed["batch"]["kernels"], RENEW
    assert case(found, "evaluation")["kernels"] <= allowed["evaluation"]["kernels"], RENEW
    for precision in PRECISIONS:
        seen = case(found, f"training {precision}")["update"]["kernels"]
        assert seen <= allowed[f"update {precision}"]["kernels"], RENEW


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_computes_on_the_gpu_in_its_precision(found, precision):
    batch = case(found, f"training {precision}")["batch"]
    assert batch["on the CPU"] == []
    assert set(batch["products"]) == {DTYPES[precision]}
    assert batch["attention"]["_scaled_dot_product_efficient_attention"] == 2  # one for each layer, none in parts


def test_evaluation_computes_on_the_gpu_in_its_precision(found):
    seen = case(found, "evaluation")
    assert seen["on the CPU"] == []
    assert set(seen["products"]) == {"bfloat16"}
    assert sum(seen["attention"].values()) == 2


@pytest.mark.parametrize("form", WITH_VALUES)
def test_the_path_of_a_gpu_computes_the_numbers_of_the_path_of_a_cpu(found):
    differences = case(found, "same numbers")
    assert "loss" in differences
    assert {name: x for name, x in differences.items() if not x <= 2e-5} == {}


@pytest.mark.parametrize("form", WITH_VALUES)
def test_a_run_goes_on_from_a_file(found):
    seen = case(found, "resume")
    assert seen == {"loaded": True, "trained": True, "updates": 2, "state": ["cuda:0"]}


def test_the_forecast_of_memory_runs(found):
    (line,) = case(found, "forecast")["log"]
    assert line.startswith("peak memory about ")


@pytest.mark.parametrize("form", PIXELS)
def test_region_features_are_those_of_a_cpu(found):
    seen = case(found, "region features")
    assert seen["difference"] < 1e-4
    assert seen["devices"] == ["cpu"]


@pytest.mark.slow
def test_a_step_of_vqa_base_stays_below_its_bounds(shim):
    """A bound of the kernels at full size. The FLOPs follow from the model."""
    command = [sys.executable, "-m", "tests.gpu.count", "vqa base"]
    done = subprocess.run(
        command, cwd=ROOT, env=fake_gpu.environment(shim), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (total,) = [line.split() for line in done.stdout.splitlines() if line.startswith("all ")]
    ops, kernels, gflop = map(int, total[1:4])
    assert kernels <= 1400
    assert 1900 < gflop < 2300

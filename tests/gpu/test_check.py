"""The script of `make gpu-check`, as far as a machine without a GPU can run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.gpu import check

ROW = {"workload": "VQA base", "precision": "bf16", "samples_per_second": 3100.4, "step_ms": 10.32}
ROW |= {"gib": 9.87, "mfu": 0.2046, "waits": 10}
RESULTS = {
    "about": {"device": "Some GPU", "commit": "abc"},
    "benchmark": {"complete": True, "found": {"rows": [ROW, {"workload": "VQA large", "error": "out of memory"}]}},
}
LINE = "| Some GPU (abc) | VQA base | bf16 | 3,100 | 10.3 | 9.9 | 20.5% | 10 |"


def new_check(tmp_path: Path) -> check.Check:
    return check.Check(torch.device("cpu"), tmp_path, fast=True, results={"about": RESULTS["about"]})


@pytest.mark.parametrize("name", ["VQA base", "RefCOCO+ base"])
def test_a_workload_is_measured(tmp_path, name):
    found = check.measure(new_check(tmp_path), check.WORKLOADS[name], "fp32")
    assert found["samples_per_second"] > 0 and found["mfu"] > 0


def test_a_failed_workload_is_a_row_and_the_others_go_on(tmp_path, monkeypatch):
    good = check.WORKLOADS["VQA base"]
    monkeypatch.setattr(check, "WORKLOADS", {"bad": check.Workload("vqa", "vqa/no.yaml", {}), "good": good})
    monkeypatch.setattr(check, "measure", lambda c, work, p: {} if work is good else check.load_config("vqa", work.cfg))
    found = check.run_benchmark(new_check(tmp_path))
    assert not found["passed"]
    assert ["error" in row for row in found["rows"]] == [True, False, False]


def test_a_stage_that_passed_does_not_run_again(tmp_path, monkeypatch):
    runs = []

    def stage(_: check.Check) -> dict[str, object]:
        runs.append(1)
        if len(runs) == 1:
            raise RuntimeError("no luck")
        return {"passed": True}

    monkeypatch.setitem(check.STAGES, "tests", stage)
    one = new_check(tmp_path)
    assert [check.run_stage("tests", one) for _ in range(3)] == [False, True, True]
    assert len(runs) == 2
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["tests"] == {"complete": True, "found": {"passed": True}}


def test_rows_are_those_of_the_benchmark():
    assert check.table_rows(RESULTS) == [LINE]


def test_rows_of_a_device_replace_its_older_ones(tmp_path):
    path = tmp_path / "gpu.md"
    path.write_text(f"# GPUs\n\n{check.BEGIN}\n\nNo GPU yet.\n\n{check.END}\n\nMore.\n")
    check.write_docs(path, "Other", ["| Other (x) | a |"])
    check.write_docs(path, "Some GPU", ["| Some GPU (old) | b |"])
    check.write_docs(path, "Some GPU", [LINE])
    lines = path.read_text().splitlines()
    assert lines.count(check.HEADER) == 1 and lines[-1] == "More."
    assert [line for line in lines if "GPU (" in line or "Other" in line] == ["| Other (x) | a |", LINE]


def test_the_docs_have_a_place_for_the_rows():
    text = check.DOCS.read_text(encoding="utf-8")
    assert text.index(check.BEGIN) < text.index(check.END)


@pytest.mark.slow
def test_the_whole_script_runs_on_a_cpu(tmp_path):
    arguments = ["--device", "cpu", "--fast", "--out", str(tmp_path)]
    assert check.main(arguments) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert all(results[stage]["complete"] for stage in check.STAGES)

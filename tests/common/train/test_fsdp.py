"""TRAIN.FSDP in two gloo processes on the CPU: the numbers and files of DDP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import load_config
from common.task import load_task
from common.train.run import run_training
from common.weights import checkpoint
from tests.common.test_distributed import run_on_two
from tests.pretrain.world import tiny_pretrain
from tests.pretrain.world import write_world as write_captions
from tests.tiny import tiny_vqa, write_settings

ATOL = 1e-6


def _train(rank: int, name: str, path: Path, runs: list[dict[str, Any]]) -> None:
    """All runs, one after the other."""
    for changes in runs:
        run_training(load_task(name), load_config(name, path, changes), path)


def losses(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in next(out.rglob("metrics.jsonl")).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "samples_per_second" and k != "time"} for line in lines]


def check_alike(one: Any, two: Any, path: str = "") -> None:
    """Equal nested values, numbers and tensors to ATOL."""
    if isinstance(one, dict):
        assert list(one) == list(two), path
        for key, value in one.items():
            check_alike(value, two[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), path
        for i, (value, other) in enumerate(zip(one, two, strict=True)):
            check_alike(value, other, f"{path}/{i}")
    elif isinstance(one, torch.Tensor):
        assert type(two) is torch.Tensor, path
        torch.testing.assert_close(two, one, rtol=1e-5, atol=ATOL, msg=lambda text: f"{path}: {text}")
    elif isinstance(one, float):
        assert two == pytest.approx(one, rel=1e-5, abs=ATOL, nan_ok=True), path
    else:
        assert two == one, path


def check_files_alike(one: Path, two: Path, name: str) -> None:
    first, second = (checkpoint.load_file(next(out.rglob(name))) for out in (one, two))
    for content in (first, second):
        del content["config"], content["made_with"]
    check_alike(first, second)
    for content in (first, second):  # tied weights are stored once
        tensors = [t for t in content["state_dict"].values() if t.numel()]
        content["storages"] = len({t.untyped_storage().data_ptr() for t in tensors})
    assert first["storages"] == second["storages"]


def captions(folder: Path, out: Path) -> dict[str, Any]:
    return tiny_pretrain(write_captions(folder / "captions"), out)


@pytest.mark.parametrize(("name", "recompute"), [("vqa", False), ("vqa", True), ("pretrain", False)])
def test_the_losses_weights_and_files_of_ddp(tiny_world, tmp_path, name, recompute):
    """Also of a run that goes on in the other form. An epoch ends between two updates, with gradients that wait."""
    out = tmp_path / "out"
    content = tiny_vqa(tiny_world, out) if name == "vqa" else captions(tmp_path, out)
    content["TRAIN"] |= {"OPTIMIZER": "AdamW", "CLIP_GRAD_NORM": 0.5, "GRAD_ACCUMULATE_STEPS": 2, "FP16": False}
    content["NETWORK"]["CHECKPOINT_ENCODER"] = recompute
    path = write_settings(content | {"NUM_WORKERS_PER_GPU": 0}, tmp_path / "tiny.yaml")
    places = {title: {"OUTPUT_PATH": str(tmp_path / title)} for title in ("ddp", "fsdp", "ddp_fsdp", "fsdp_ddp")}
    half, shared = {"TRAIN.END_EPOCH": 1}, {"TRAIN.FSDP": True}
    runs = [places["ddp"], places["fsdp"] | shared]
    runs += [places["ddp_fsdp"] | half, places["ddp_fsdp"] | shared]
    runs += [places["fsdp_ddp"] | half | shared, places["fsdp_ddp"]]
    run_on_two(_train, name, path, runs)
    for title in ("fsdp", "ddp_fsdp", "fsdp_ddp"):
        check_files_alike(tmp_path / "ddp", tmp_path / title, "tiny-0001.model")
    check_files_alike(tmp_path / "ddp", tmp_path / "fsdp", "tiny-0000.model")
    check_alike(losses(tmp_path / "ddp"), losses(tmp_path / "fsdp"))
    saved = checkpoint.load_file(next((tmp_path / "fsdp").rglob("tiny-0000.model")))
    assert len(saved["optimizer"]["state"]) > 10

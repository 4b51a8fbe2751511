"""TRAIN.FSDP in two gloo processes on the CPU: the numbers and files of DDP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common import distributed
from common.config import load_config
from common.errors import ConfigError
from common.nn.bert import EncoderLayer
from common.nn.cpu.bert import FastEncoder, PackedLayer
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


def _evaluation(rank: int) -> None:
    """The ranks call a gathered model differently often, in inference mode, and train it afterwards."""
    torch.manual_seed(rank)
    layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    plain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    model = distributed.wrap(layers, torch.device("cpu"), [layers[0]])
    with distributed.gathered(layers), torch.inference_mode():
        outputs = [layers(torch.ones(2, 3)).tolist() for _ in range(1 + 2 * rank)]
    every = distributed.gather_objects(outputs[-1])
    assert every is None or every[0] == every[1]  # also: both have the weights of rank 0
    state = distributed.broadcast_object(distributed.whole_state(layers))
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(torch.ones(2, 3)), torch.tensor(outputs[0]))
    with distributed.gradient_exchange(model, True):
        model(torch.full((2, 3), float(rank))).sum().backward()
    whole = distributed.whole({name: p.grad for name, p in layers.named_parameters()})
    grads = distributed.broadcast_object(whole)
    plain(torch.cat([torch.zeros(2, 3), torch.ones(2, 3)])).sum().div(2).backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad)


class _Own(EncoderLayer):
    """A layer of another class."""


def _packed(rank: int) -> None:
    """The encoder leaves padding out also under FSDP. A layer of another class is called as it is."""
    calls, original = [], PackedLayer.__call__

    def count(self: PackedLayer, layer: EncoderLayer, *args: Any) -> torch.Tensor:
        calls.append(type(layer).__name__)
        return original(self, layer, *args)

    encoder = FastEncoder(2, 16, 2, 32)
    encoder.layer[1] = _Own(16, 2, 32, "gelu", 0.0, 0.0)
    model = distributed.wrap(encoder, torch.device("cpu"), list(encoder.layer))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedLayer, "__call__", count)
        model(torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)).layers[-1].sum().backward()
    assert calls == ["FSDPEncoderLayer"]


def _scalar(rank: int) -> None:
    model = nn.Linear(2, 2)
    model.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ConfigError, match="the parameter scale is a single number"):
        distributed.wrap(model, torch.device("cpu"), [])


@pytest.mark.parametrize("function", [_evaluation, _packed, _scalar])
def test_two_processes(function):
    run_on_two(function)


def test_one_process_trains_as_without():
    model = nn.Linear(2, 2)
    assert distributed.wrap(model, torch.device("cpu"), []) is model


def captions(folder: Path, out: Path) -> dict[str, Any]:
    return tiny_pretrain(write_captions(folder / "captions"), out)


@pytest.mark.parametrize(("name", "recompute"), [("vqa", False), ("vqa", True), ("pretrain", False)])
def test_the_losses_weights_and_files_of_ddp(tiny_world, tmp_path, name, recompute):
    """Also of a run that goes on in the other form. An epoch ends between two updates, with gradients that wait."""
    out = tmp_path / "out"
    content = tiny_vqa(tiny_world, out) if name == "vqa" else captions(tmp_path, out)
    content["TRAIN"] |= {"OPTIMIZER": "AdamW", "CLIP_GRAD_NORM": 0.5, "GRAD_ACCUMULATE_STEPS": 2, "FP16": False}
    content["NETWORK"]["CHECKPOINT_ENCODER"] = recompute
    if name == "vqa":
        content["TRAIN"]["BATCH_IMAGES"] = 5
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
    assert saved["run"]["gradients"] or name != "vqa"

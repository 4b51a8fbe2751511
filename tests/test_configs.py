"""The configs under cfgs load to stored values: tests/resolved_configs.json, made before they had files in common."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from easydict import EasyDict

from common.config import default_config, load_config
from common.inference import load_predictor
from tests.paths import ROOT

CFGS = ROOT / "cfgs"
STORED: dict[str, dict[str, Any]] = json.loads((ROOT / "tests/resolved_configs.json").read_text())
FILES = sorted(str(path.relative_to(CFGS)) for path in CFGS.glob("[!_]*/*.yaml"))
FLAT = {"pretrain": "pretrain/base_e2e_16x16G_fp16.yaml", "vcr": "vcr/base_q2a_4x16G_fp32.yaml"}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a nested config. An entry of a list of data sets is DATASET.0."""
    entries: Any = ()
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        entries = enumerate(value)
    else:
        yield path, value
    for name, entry in entries:
        yield from leaves(entry, f"{path}.{name}" if path else str(name))


def resolved(task: str, path: Path) -> dict[str, Any]:
    return dict(leaves(json.loads(json.dumps(load_config(task, path).to_dict()))))


def default_of(task: str, key: str) -> Any:
    """The default of a key. Every data set of a list has the defaults of the section."""
    parts = [part for part in key.split(".") if not part.isdigit()]
    node: Any = json.loads(json.dumps(default_config(task).to_dict()))
    for part in parts:
        node = node[part]
    return node


def test_every_config_has_stored_values():
    assert sorted(STORED) == FILES


@pytest.mark.parametrize("file", FILES)
def test_a_config_loads_to_its_stored_values(file: str):
    """A key that was added since has its default."""
    task = file.split("/")[0]
    stored, now = dict(leaves(STORED[file])), resolved(task, CFGS / file)
    assert {key: now.get(key) for key in stored} == stored
    added = {key: value for key, value in now.items() if key not in stored}
    assert added == {key: default_of(task, key) for key in added}


def test_every_config_is_written_as_a_difference():
    flat = [file for file in FILES if "_BASE_" not in yaml.safe_load((CFGS / file).read_text())]
    assert flat == []


@pytest.mark.parametrize(("task", "file"), FLAT.items())
def test_a_flat_file_of_the_2020_release_loads_to_the_same_values(task: str, file: str):
    flat = ROOT / "tests/flat_configs" / f"{task}.yaml"
    assert "_BASE_" not in yaml.safe_load(flat.read_text())
    assert resolved(task, flat) == resolved(task, CFGS / file)


def test_a_checkpoint_that_names_the_old_module_of_region_features_loads(vqa_ckpt: Path, image: Path, tmp_path: Path):
    """Checkpoints of the demo from before data/ had folders name module:data.scene_regions."""
    content = torch.load(vqa_ckpt, weights_only=True)
    del content["checksums"]  # which such files do not have
    answers = {}
    for module in ("data.scene_regions", "data.scenes.regions"):
        content["config"]["NETWORK"]["REGION_ENCODER"] = f"module:{module}"
        torch.save(content, tmp_path / f"{module}.model")
        predictor = load_predictor(tmp_path / f"{module}.model", device="cpu")
        answers[module] = predictor(image, question="what color is the circle?").answers
    assert answers["data.scene_regions"] == answers["data.scenes.regions"]


def test_a_config_is_an_easydict():
    """Code of the 2020 release takes one."""
    cfg = load_config("vqa", CFGS / FILES[-1])
    assert isinstance(cfg, EasyDict) and isinstance(cfg.NETWORK.VLBERT, EasyDict)

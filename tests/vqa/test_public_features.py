"""Training on the features of a public TSV file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.config import load_config
from common.regions.json_store import save_regions
from common.regions.open import open_regions
from common.train.run import run_training
from common.weights import checkpoint
from data.extract_features import main
from tests.cli import root_logger_restored
from tests.data.regions.tsv import attention_row, lines, lxmert_row
from tests.tiny import tiny_vqa, write_settings
from vqa.task import TASK

STORE = "vgbua_res101_precomputed/trainval2014_resnet101_faster_rcnn_genome"


def train(world: Path, folder: Path, regions: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of some updates on the regions of a store."""
    settings = tiny_vqa(world, folder / "out")
    settings["DATASET"] |= {"REGION_PATH": str(regions)}
    settings["TRAIN"] |= {"END_EPOCH": 1}
    folder.mkdir()
    path = write_settings(settings, folder / "tiny.yaml")
    with root_logger_restored():
        out = run_training(TASK, load_config("vqa", path), path)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [record["Train-Loss"] for record in records if record["kind"] == "train"]
    return losses, checkpoint.load_file(out / "tiny-0000.model")["state_dict"]


@pytest.mark.parametrize("row", [attention_row, lxmert_row])
def test_training_on_a_tsv_is_training_on_the_store(tiny_world, tmp_path, row) -> None:
    """On a store without the feature of the whole image, which no TSV has: it is the mean of the regions then."""
    source = open_regions(tiny_world / STORE)
    own = tmp_path / "own"
    own.mkdir()
    rows = []
    for name in reversed(source.names()):
        regions = replace(source.regions(name).in_memory(), image_feature=None)
        save_regions(own, name, regions)
        rows.append(row(f"COCO_train2014_{int(name):012d}", regions))
    (tmp_path / "features.tsv").write_text(lines(*rows))
    packed = tmp_path / "tsv.packed"
    assert main(["--pack", str(tmp_path / "features.tsv"), "--out", str(packed)]) == 0

    losses, weights = train(tiny_world, tmp_path / "store", own)
    other_losses, other_weights = train(tiny_world, tmp_path / "tsv", packed)
    assert losses and other_losses == losses
    assert other_weights.keys() == weights.keys()
    assert all(torch.equal(other_weights[key], value) for key, value in weights.items())
    assert train(tiny_world, tmp_path / "whole", Path(source.path))[0] != losses  # the features do count

"""Attention maps of a data set and of images of users, in the original's files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.config import load_config
from common.data.collate import collate
from common.weights import checkpoint
from pretrain.task import TASK
from pretrain.vis_attention_maps import main
from tests.pretrain.world import write_coco, write_world
from tests.tiny import tiny_settings, write_settings
from viz.attention import main as make_page


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    return write_coco(write_world(tmp_path_factory.mktemp("coco") / "world"))


@pytest.fixture
def cfg_path(coco, tmp_path) -> Path:
    """The shipped config, shrunk, with weights in a checkpoint."""
    settings = tiny_settings("pretrain/vis_attention_maps_coco.yaml", coco, tmp_path)
    settings["SCALES"] = [48, 80]
    settings["NETWORK"] |= {"IMAGE_NUM_LAYERS": 50, "IMAGE_PRETRAINED": "", "IMAGE_C5_DILATED": False}
    settings["NETWORK"]["VLBERT"]["initializer_range"] = 0.5
    settings["VAL"] = {"BATCH_IMAGES": 2}  # padded
    settings["TRAIN"] = {}
    path = write_settings(settings, tmp_path / "maps.yaml")
    torch.manual_seed(3)
    model = TASK.build_model(load_config("pretrain", path))
    checkpoint.save_file(tmp_path / "weights.model", {"state_dict": model.state_dict()})
    return path


def run(cfg_path: Path, *more: str) -> tuple[int, Path]:
    folder = cfg_path.parent / "maps"
    arguments = ["--cfg", str(cfg_path), "--ckpt", str(cfg_path.parent / "weights.model"), "--save-dir", str(folder)]
    return main([*arguments, *more]), folder


def test_maps_are_those_of_the_attention_module_without_padding(cfg_path):
    status, folder = run(cfg_path)
    assert status == 0
    files = sorted(p.name for p in (folder / "attention_probs").iterdir())
    assert files == ["3.npy", "5.npy", "7.npy"]
    cfg = load_config("pretrain", cfg_path)
    model = TASK.build_model(cfg).eval()
    model.load_state_dict(checkpoint.load_file(cfg_path.parent / "weights.model")["state_dict"])
    dataset = TASK.build_dataset(cfg, "val")
    samples = [dataset.sample(i, random.Random(0)) for i in range(3)]
    with torch.no_grad():
        expected = [
            m for part in (samples[:2], samples[2:]) for m in model(collate(part)).predictions["attention_probs"]
        ]
    for name, sample, wanted in zip(["3", "5", "7"], samples, expected, strict=True):
        found = np.load(folder / "attention_probs" / f"{name}.npy")
        size = len(sample.text_ids) + len(sample.boxes) + 1  # what is behind it is padding of the batch
        assert found.dtype == np.float32 and found.shape == (2, 2, size, size)
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(found, wanted[..., :size, :size].numpy(), atol=1e-5)
        about = json.loads((folder / "slots" / f"{name}.json").read_text())
        assert len(about["slots"]) == found.shape[-1]
    kinds = [s["kind"] for s in about["slots"]]
    assert kinds == ["special", "word", "word", "word", "special", "image", "region", "region", "end"]
    assert about["text"] == "w7 the box" and about["names"] == ["image", "1", "2"]
    np.testing.assert_allclose(about["boxes"][1], [1, 2, 10, 21], atol=0.02)  # in pixels of the image


def test_what_is_there_is_not_made_again(cfg_path):
    _, folder = run(cfg_path)
    one = folder / "attention_probs/5.npy"
    one.write_bytes(b"kept")
    (folder / "attention_probs/7.npy").unlink()
    assert run(cfg_path)[0] == 0
    assert one.read_bytes() == b"kept" and (folder / "attention_probs/7.npy").is_file()


def test_own_images(cfg_path, tmp_path, capsys):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "mine.png")
    rows = [
        {"image": str(tmp_path / "mine.png"), "caption": "a red box", "boxes": [[1, 2, 20, 30]]},
        {"id": "second", "image": str(tmp_path / "mine.png"), "caption": "the text", "boxes": []},
    ]
    lines = tmp_path / "own.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    status, folder = run(cfg_path, "--input", str(lines))
    assert status == 0
    assert np.load(folder / "attention_probs/mine.npy").shape == (2, 2, 8, 8)
    assert np.load(folder / "attention_probs/second.npy").shape == (2, 2, 6, 6)

    page = tmp_path / "page.html"
    assert make_page(["--map", str(folder / "attention_probs/mine.npy"), "-o", str(page)]) == 0
    assert "mine.png: a red box" in page.read_text()

    lines.write_text(json.dumps({"image": "nothing.png", "caption": "a"}) + "\n")
    assert run(cfg_path, "--input", str(lines))[0] == 1
    lines.write_text("no json\n")
    assert run(cfg_path, "--input", str(lines))[0] == 1


def test_a_map_without_its_slots_is_refused(tmp_path):
    (tmp_path / "attention_probs").mkdir()
    np.save(tmp_path / "attention_probs/1.npy", np.zeros((1, 1, 2, 2), np.float32))
    assert make_page(["--map", str(tmp_path / "attention_probs/1.npy"), "-o", str(tmp_path / "x.html")]) == 1

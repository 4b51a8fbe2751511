"""Exports; each task compares its ONNX file with the model (task_check)."""

from __future__ import annotations

import json

import pytest
import torch

from common.errors import ConfigError
from common.export import main
from common.predict.export import example, export
from common.predict.load import load_predictor


def test_a_program_of_torch_export(vqa_ckpt, vqa_predictor, tmp_path):
    out = tmp_path / "model.pt2"
    assert main(["--ckpt", str(vqa_ckpt), "--device", "cpu", "-o", str(out)]) == 0
    about = json.loads((tmp_path / "model.json").read_text())
    assert about["task"] == "vqa" and about["inputs"]["features"] == ["float32", "B", "R", "2048"]
    batch = example(vqa_predictor)
    with torch.no_grad():
        (got,) = torch.export.load(out).module()(*(getattr(batch, name) for name in about["inputs"]))
        expected = vqa_predictor.model(batch).predictions["label_logits"]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_exported_is_told(vqa_ckpt, vqa_predictor, tmp_path):
    with pytest.raises(ConfigError, match="ends in .onnx or .pt2"):
        export(vqa_predictor, tmp_path / "model.bin")
    pixels = load_predictor(vqa_ckpt, device="cpu")
    pixels.cfg = type(pixels.cfg)({**pixels.cfg, "NETWORK": {**pixels.cfg.NETWORK, "IMAGE_FEAT_PRECOMPUTED": False}})
    with pytest.raises(ConfigError, match="take region features"):
        export(pixels, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []

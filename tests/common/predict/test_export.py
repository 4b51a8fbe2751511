"""Exports; each task compares its ONNX file with the model (task_check)."""

from __future__ import annotations

import json

import pytest
import torch

from common.errors import ConfigError
from common.export import main
from common.predict.export import example, export, name_axes
from common.predict.load import load_predictor


def test_a_program_of_torch_export(vqa_ckpt, vqa_predictor, tmp_path):
    out = tmp_path / "model.pt2"
    assert main(["--ckpt", str(vqa_ckpt), "--device", "cpu", "-o", str(out)]) == 0
    about = json.loads((tmp_path / "model.json").read_text())
    assert about["task"] == "vqa" and about["inputs"]["features"] == ["float32", "B", "R", "2048"]
    more = {"metadata.json": ""}
    torch.export.load(out, extra_files=more)
    assert json.loads(more["metadata.json"])["answers"].split("\n") == list(vqa_predictor.answers)
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


@pytest.fixture(scope="module")
def file(vqa_ckpt, tmp_path_factory):
    """A VQA model as an ONNX file, read again."""
    onnx = pytest.importorskip("onnx", reason="no onnx: axes and metadata of an exported model were not read")
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export(load_predictor(vqa_ckpt, device="cpu"), path)
    return onnx.load(path)


class TestOnnx:
    def test_axes_have_letters(self, file):
        axes = {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*file.graph.input, *file.graph.output)
        }
        answers = axes.pop("label_logits")[1]
        assert answers > 1 and axes == {
            "boxes": ["B", "R", 4],
            "box_mask": ["B", "R"],
            "im_info": ["B", 4],
            "features": ["B", "R", 2048],
            "text_ids": ["B", "T"],
            "segment_ids": ["B", "T"],
            "text_mask": ["B", "T"],
        }

    def test_the_file_holds_what_a_program_without_this_code_needs(self, file, vqa_predictor):
        found = {entry.key: entry.value for entry in file.metadata_props}
        vocab = vqa_predictor.inputs.tokenizer.vocab
        pieces = found["vocabulary"].split("\n")
        assert {piece: i for i, piece in enumerate(pieces)} == vocab
        assert found["answers"].split("\n") == list(vqa_predictor.answers) and found["task"] == "vqa"
        assert json.loads(found["outputs"]) == ["label_logits"] and json.loads(found["image_is_first_box"]) is True
        steps = json.loads(found["preprocessing"])
        assert [steps["short_side"], steps["longest_side"]] == list(vqa_predictor.cfg.SCALES)

    def test_axes_of_choices_and_expressions(self):
        onnx = pytest.importorskip("onnx", reason="no onnx: axes of choices were not named")
        helper, kind = onnx.helper, onnx.TensorProto.INT64
        given = [helper.make_tensor_value_info("text_ids", kind, ["s3", "s14", "s1"])]
        out = [helper.make_tensor_value_info("logits", kind, ["s3*s14", "s1 + 2", "s140"])]
        graph = helper.make_graph([], "g", given, out)
        name_axes(graph, {"text_ids": ("B", "C", "T")})
        (logits,) = graph.output
        assert [dim.dim_param for dim in logits.type.tensor_type.shape.dim] == ["B*C", "T + 2", "s140"]

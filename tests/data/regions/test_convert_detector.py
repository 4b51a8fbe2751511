"""The converter of detector files, on a ResNet-50 with few classes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from common.detect.weights import DetectorSizes, read_detector
from common.nn.fast_rcnn import FastRCNN
from common.weights.foreign import load_backbone
from data.convert_detector import main
from data.regions.random_detector import random_state
from tests import caffe_files
from tests.detector_files import as_caffe, as_port, assert_equal

SIZES = DetectorSizes(50, num_classes=7, num_attributes=3)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return {k: v for k, v in random_state(SIZES, seed=1).items() if not k.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def caffemodel(state, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "a.caffemodel"
    path.write_bytes(caffe_files.caffemodel(as_caffe(state, SIZES) | {"other": [torch.zeros(1).numpy()]}))
    return path


def test_a_caffe_model_becomes_safetensors(state, caffemodel, tmp_path, capsys):
    out = tmp_path / "new" / "b.safetensors"
    assert main([str(caffemodel), "-o", str(out)]) == 0
    assert_equal(read_detector(out), state)
    assert "1 file keys unused: other.0" in capsys.readouterr().out
    with safe_open(out, framework="pt") as file:
        assert file.metadata() == {
            "format": "visual-genome-detector",
            "version": "1",
            "source": "a.caffemodel",
            "source_sha256": hashlib.sha256(caffemodel.read_bytes()).hexdigest(),
        }
    assert [path.name for path in out.parent.iterdir()] == ["b.safetensors"]


def test_both_inputs_give_the_same_file_but_for_its_source(state, caffemodel, tmp_path):
    torch.save({"model": as_port(state, SIZES)}, tmp_path / "a.pth")
    for source, out in ((caffemodel, "b.safetensors"), (tmp_path / "a.pth", "c.safetensors")):
        assert main([str(source), "--out", str(tmp_path / out)]) == 0
    first, second = (read_detector(tmp_path / name).state for name in ("b.safetensors", "c.safetensors"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_resnet_alone_loads_as_a_backbone(state, caffemodel, tmp_path):
    assert main([str(caffemodel), "--resnet", str(tmp_path / "resnet50")]) == 0
    given = torch.load(tmp_path / "resnet50-0000.model", weights_only=True)
    assert not [key for key in given if key.endswith("num_batches_tracked") or key.startswith(("rpn", "fc_attr"))]
    model = FastRCNN(50, final_dim=4)
    assert load_backbone(model, tmp_path / "resnet50-0000.model").unused == []
    assert torch.equal(model.backbone.layer3[5].conv2.weight, state["backbone.layer3.5.conv2.weight"])
    assert torch.equal(model.roi_head_feature_extractor[2].bn3.running_var, state["head.2.bn3.running_var"])


def test_a_file_that_exists_is_not_replaced(caffemodel, tmp_path, capsys):
    out = tmp_path / "b.safetensors"
    out.write_bytes(b"mine")
    assert main([str(caffemodel), "-o", str(out)]) == 2
    assert f"{out} exists; remove it, or replace it with --overwrite" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert main([str(caffemodel), "-o", str(out), "--overwrite"]) == 0
    assert read_detector(out).sizes == SIZES


def test_a_file_is_not_converted_onto_itself(caffemodel, tmp_path, capsys):
    out = tmp_path / "b.safetensors"
    assert main([str(caffemodel), "-o", str(out)]) == 0
    assert main([str(out), "-o", str(out), "--overwrite"]) == 2
    assert "is the file to convert" in capsys.readouterr().err


def test_errors_are_one_line_and_leave_no_file(tmp_path, capsys):
    (tmp_path / "a.caffemodel").write_bytes(b"<html>quota</html>")
    for name, problem in (("a.caffemodel", "a web page"), ("b.caffemodel", "PREPARE_PRETRAINED_MODELS.md")):
        assert main([str(tmp_path / name), "-o", str(tmp_path / "c.safetensors")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and problem in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.caffemodel"]


@pytest.mark.parametrize("arguments", [[], ["-o", "a.pth"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit):
        main(["a.caffemodel", *arguments])
    assert "-o" in capsys.readouterr().err

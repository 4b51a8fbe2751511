"""Weight files of the Visual Genome detector: the three forms hold the same tensors, other files are refused."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from common.detect.weights import (
    DOCUMENT,
    METADATA,
    DetectorSizes,
    detector_table,
    from_caffe,
    from_state,
    read_detector,
    weights_report,
    why_not_a_detector,
)
from common.errors import CheckpointError, UserError
from common.nn.resnet import ResNetC4, build_c5
from data.regions.convert_detector import resnet_state
from tests import caffe_files
from tests.detector_files import as_caffe, as_port, assert_equal
from tests.paths import ROOT

SIZES = DetectorSizes(50, num_classes=11, num_attributes=5)


def numbered(sizes: DetectorSizes = SIZES) -> dict[str, Tensor]:
    """A state dict without counters. Each tensor is 0 but for its first number, which no other tensor has."""
    state = {}
    for i, entry in enumerate(detector_table(sizes)):
        state[entry.key] = torch.zeros(entry.shape)
        state[entry.key].view(-1)[0] = i + 1
    return state


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return numbered()


def test_the_table_has_every_tensor_of_the_trunk_and_the_head():
    """The names of 50, 101 and 152 layers, with the shapes of the modules of common.nn.resnet."""
    for layers in (50, 101, 152):
        entries = {e.key: e.shape for e in detector_table(DetectorSizes(layers))}
        with torch.device("meta"):
            trunk, head = ResNetC4(layers, stride_in_1x1=True), build_c5(True, True, True)
        modules = {f"backbone.{k}": v for k, v in trunk.state_dict().items()}
        modules |= {f"head.{k}": v for k, v in head.state_dict().items()}
        wanted = {k: tuple(v.shape) for k, v in modules.items() if not k.endswith("num_batches_tracked")}
        assert {k: v for k, v in entries.items() if k.startswith(("backbone.", "head."))} == wanted
        assert len(entries) == len(wanted) + 15


def test_the_published_files_have_the_size_that_the_document_states():
    entries = list(detector_table(DetectorSizes()))
    counters = sum(entry.key.endswith("running_mean") for entry in entries)
    text = (ROOT / DOCUMENT).read_text(encoding="utf-8")
    assert f"`{len(entries) + counters} tensors loaded`" in text
    assert f"{4 * sum(math.prod(entry.shape) for entry in entries) / 1e6:.0f} MB" in text


@pytest.mark.parametrize(
    ("key", "caffe", "port"),
    [
        ("backbone.conv1.weight", "conv1.0", "backbone.stem.conv1.weight"),
        ("backbone.bn1.running_var", "bn_conv1.1", "backbone.stem.conv1.norm.running_var"),
        ("backbone.bn1.bias", "scale_conv1.1", "backbone.stem.conv1.norm.bias"),
        ("backbone.layer1.0.downsample.0.weight", "res2a_branch1.0", "backbone.res2.0.shortcut.weight"),
        ("backbone.layer1.0.downsample.1.weight", "scale2a_branch1.0", "backbone.res2.0.shortcut.norm.weight"),
        ("backbone.layer1.2.conv3.weight", "res2c_branch2c.0", "backbone.res2.2.conv3.weight"),
        ("backbone.layer2.3.conv1.weight", "res3b3_branch2a.0", "backbone.res3.3.conv1.weight"),
        ("backbone.layer3.22.bn2.running_mean", "bn4b22_branch2b.0", "backbone.res4.22.conv2.norm.running_mean"),
        ("head.1.conv2.weight", "res5b_branch2b.0", "roi_heads.res5.1.conv2.weight"),
        ("rpn.conv.weight", "rpn_conv/3x3.0", "proposal_generator.rpn_head.conv.weight"),
        ("rpn.objectness.bias", "rpn_cls_score.1", "proposal_generator.rpn_head.objectness_logits.bias"),
        ("rpn.deltas.bias", "rpn_bbox_pred.1", "proposal_generator.rpn_head.anchor_deltas.bias"),
        ("cls_embedding.weight", "cls_embedding.0", "roi_heads.box_predictor.cls_embed.weight"),
        ("fc_attr.weight", "fc_attr.0", "roi_heads.box_predictor.attr_linear1.weight"),
        ("attr_score.bias", "attr_score.1", "roi_heads.box_predictor.attr_linear2.bias"),
    ],
)
def test_names(key, caffe, port):
    entry = {e.key: e for e in detector_table(DetectorSizes())}[key]
    assert (entry.caffe, entry.port) == (caffe, port)


@pytest.mark.parametrize("layers", [50, 101, 152])
def test_the_sizes_are_read_from_the_file(layers):
    sizes = DetectorSizes(layers, num_classes=3, num_attributes=2, embedding_dim=6, hidden_dim=4)
    state = numbered(sizes)
    for weights in (
        from_caffe(as_caffe(state, sizes), "f"),
        from_state(as_port(state, sizes), "f"),
        from_state(state, "f"),
    ):
        assert weights.sizes == sizes and weights.unused == []
        assert_equal(weights, state)


def test_blocks_with_letters(state):
    assert_equal(from_caffe(as_caffe(state, SIZES, lettered=True), "f"), state)


def test_statistics_without_a_factor_are_zero(state):
    blobs = as_caffe(state, SIZES)
    blobs["bn2b_branch2a"][2][:] = 0
    weights = from_caffe(blobs, "f")
    for leaf in ("running_mean", "running_var"):
        assert not weights.state[f"backbone.layer1.1.bn1.{leaf}"].any()
        assert weights.state[f"backbone.layer1.1.bn2.{leaf}"].any()


def test_leading_ones_are_dropped(state):
    blobs = {
        layer: [x.reshape((1,) * (4 - x.ndim) + x.shape) for x in arrays]
        for layer, arrays in as_caffe(state, SIZES).items()
    }
    assert_equal(from_caffe(blobs, "f"), state)


def test_unknown_tensors_are_reported(state):
    weights = from_caffe(as_caffe(state, SIZES) | {"fc1000": [np.zeros((2, 2), np.float32)]}, "f")
    assert weights.unused == ["fc1000.0"]
    port = as_port(state, SIZES) | {"proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(12, 4)}
    weights = from_state(port, "f")
    assert weights.unused == ["proposal_generator.anchor_generator.cell_anchors.0"]
    assert "1 file keys unused: proposal_generator.anchor" in str(weights_report(weights, "a.pth"))


def test_a_convolution_with_a_bias_is_not_read_without_it(state):
    blobs = as_caffe(state, SIZES)
    blobs["conv1"].append(np.zeros(64, np.float32))
    with pytest.raises(CheckpointError, match="conv1 has 2 blobs; a convolution of this detector has no bias"):
        from_caffe(blobs, "f")


def test_missing_and_wrong_tensors_are_named(state):
    blobs = as_caffe(state, SIZES)
    del blobs["res4b2_branch2a"]
    blobs["cls_score"][1] = np.zeros(12, np.float32)
    with pytest.raises(CheckpointError) as error:
        from_caffe(blobs, "weights f")
    assert str(error.value) == (
        "weights f: no Visual Genome detector of 50 layers, 2 tensors: res4b2_branch2a.0 is missing, "
        "expected (256, 1024, 1, 1); cls_score.1 is (12,), expected (11,)"
    )


def test_the_last_block_missing(state):
    blobs = {layer: arrays for layer, arrays in as_caffe(state, SIZES).items() if "4b5_" not in layer}
    with pytest.raises(CheckpointError, match=r"detector of 50 layers, 15 tensors: res4b5_branch2a\.0 is missing"):
        from_caffe(blobs, "f")


def test_numbers_that_are_none(state):
    port = as_port(state, SIZES)
    port["roi_heads.box_predictor.cls_score.bias"] = torch.full((11,), math.nan)
    with pytest.raises(CheckpointError, match=r"cls_score\.bias has numbers that are infinite or NaN"):
        from_state(port, "f")


def test_batch_norms_of_other_blobs(state):
    blobs = as_caffe(state, SIZES)
    blobs["bn_conv1"] = blobs["bn_conv1"][:2]
    with pytest.raises(CheckpointError, match=r"bn_conv1 has blobs of \[\(64,\), \(64,\)\]; expected mean, variance"):
        from_caffe(blobs, "f")


# ---------------------------------------------------------------------------------------------- files


def test_the_three_files_hold_the_same(state, tmp_path):
    (tmp_path / "a.caffemodel").write_bytes(caffe_files.caffemodel(as_caffe(state, SIZES)))
    torch.save({"model": as_port(state, SIZES), "iteration": 3}, tmp_path / "b.pth")
    save_file(state, tmp_path / "c.safetensors", METADATA)
    for name in ("a.caffemodel", "b.pth", "c.safetensors"):
        weights = read_detector(tmp_path / name)
        assert weights.sizes == SIZES and weights.unused == []
        assert_equal(weights, state)


@pytest.mark.parametrize("name", ["a.caffemodel", "a.pth", "a.safetensors"])
def test_a_missing_file_points_at_the_document(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"no such file; model/pretrained_model/PREPARE_PRETRAINED_MODELS\.md"):
        read_detector(tmp_path / name)


@pytest.mark.parametrize("name", ["a.caffemodel", "a.pth", "a.safetensors", "a.pkl"])
@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"version https://git-lfs.github.com/spec/v1\n", b"\x00" * 99, b"x"]
)
def test_files_of_other_content(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as error:
        read_detector(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_newer_version_of_our_file(tmp_path):
    save_file({"rpn.objectness.weight": torch.zeros(1)}, tmp_path / "a.safetensors", METADATA | {"version": "2"})
    with pytest.raises(CheckpointError, match="version 2 of the format visual-genome-detector; expected 1"):
        read_detector(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [[1, 2], {"iteration": 3}, {"model": {}}])
def test_torch_files_without_tensors(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="tensors"):
        read_detector(tmp_path / "a.pth")


def test_detectors_for_detectron2_are_refused_with_the_reason(state, tmp_path):
    port = {key: np.asarray(value) for key, value in as_port(state, SIZES).items() if "rpn_head" in key}
    name = "proposal_generator.rpn_head.objectness_logits.weight"
    port[name] = port[name][:12]
    (tmp_path / "faster_rcnn_from_caffe.pkl").write_bytes(pickle.dumps({"model": port, "__author__": "Caffe"}))
    torch.save({"model": {k: torch.from_numpy(v) for k, v in port.items()}}, tmp_path / "b.pth")
    for file in ("faster_rcnn_from_caffe.pkl", "b.pth"):
        with pytest.raises(
            CheckpointError, match="12 objectness logits instead of 24, the background is the last class"
        ):
            read_detector(tmp_path / file)


def other_files(state: dict[str, Tensor]) -> dict[str, tuple[dict[str, Tensor], str]]:
    zero = torch.zeros(1)
    return {
        "ResNet": (resnet_state(state), "a ResNet alone.*no region proposal network.*final.caffemodel or bua-caffe"),
        "torchvision": ({"backbone.body.conv1.weight": zero, "rpn.head.conv.0.0.weight": zero}, "detector:FILE"),
        "VL-BERT": ({"module.vlbert.word_embeddings.weight": zero}, "a VL-BERT checkpoint, which has no detector"),
        "BERT": ({"bert.embeddings.word_embeddings.weight": zero}, "a language model"),
    }


@pytest.mark.parametrize("name", ["ResNet", "torchvision", "VL-BERT", "BERT"])
def test_files_of_other_models_are_refused_by_what_they_are(state, tmp_path, name):
    content, reason = other_files(state)[name]
    torch.save({"state_dict": content}, tmp_path / "a.model")
    with pytest.raises(CheckpointError, match=f"a.model: .*{reason}.*PREPARE_PRETRAINED_MODELS.md"):
        read_detector(tmp_path / "a.model")


def test_a_detector_is_not_refused(state):
    assert why_not_a_detector(state) is None and why_not_a_detector(as_port(state, SIZES)) is None


def test_load_detector(state, tmp_path: Path):
    pytest.importorskip("common.detect.network", reason="the network is not here")
    from common.detect.weights import load_detector

    save_file(state, tmp_path / "c.safetensors", METADATA)
    network, report = load_detector(tmp_path / "c.safetensors")
    loaded = network.state_dict()
    assert not network.training and set(report.loaded) == loaded.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())

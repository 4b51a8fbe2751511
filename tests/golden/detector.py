"""Group L: the Visual Genome detector, stage by stage."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from common.boxes import iou
from common.detect.image import scaled_input
from common.detect.network import VisualGenomeDetector
from common.detect.proposals import base_anchors, find_proposals
from common.detect.selection import class_confidence, select_boxes
from tests.golden.core import Case, Report

TOLERANCE = {"atol": 1e-3, "rtol": 1e-3}  # features, deltas, pool5
PROBABILITY = {"atol": 1e-3, "rtol": 0.0}
PIXEL = {"atol": 1e-3, "rtol": 0.0}  # boxes of a stage alone
SAME_BOX = 0.1  # pixels; boxes of the whole network
MATCHED = 0.98  # least part of the stored boxes that must be found


def run(case: Case, report: Report) -> None:
    kinds: dict[str, Callable[[Case, Report], None]] = {
        "anchors": _anchors,
        "caffemodel": _caffemodel,
        "proposals": _proposals,
        "selection": _selection,
        "network": _network,
    }
    kind = case.json["kind"]
    if kind not in kinds:
        raise ValueError(f"kind {kind!r}: expected one of {', '.join(kinds)}")
    kinds[kind](case, report)


def _anchors(case: Case, report: Report) -> None:
    report.equal("out.anchors", base_anchors(), case.array("out.anchors"))


def _caffemodel(case: Case, report: Report) -> None:
    from common.files.caffemodel import read_caffemodel

    blobs = read_caffemodel(case.path.parent / case.json["file"])
    found = {f"{layer}.{i}": blob for layer, of_layer in blobs.items() for i, blob in enumerate(of_layer)}
    report.equal("names of blobs", sorted(found), sorted(case.arrays))
    for name, want in case.arrays.items():
        if name in found:
            report.equal(name, found[name], want)
            report.equal(f"{name} dtype", str(found[name].dtype), str(want.dtype))


def _proposals(case: Case, report: Report) -> None:
    height, width, scale = case.array("in.info").tolist()
    prob, deltas = (torch.from_numpy(case.array(f"in.{name}")) for name in ("prob", "deltas"))
    boxes, scores = find_proposals(prob, deltas, (int(width), int(height)), scale)
    want = torch.from_numpy(case.array("out.boxes"))
    report.equal("out.scores", scores[:, None], case.array("out.scores"))
    if boxes.shape == want.shape:
        boxes = boxes[_tie_order(boxes, want, scores)]
    report.close("out.boxes", boxes, want, **PIXEL)


def _tie_order(boxes: Tensor, want: Tensor, scores: Tensor) -> Tensor:
    """The permutation [N] that brings boxes of equal scores into the stored order.

    That order was left open by the original: its sort is not stable, and differs between processors. The position of
    a box among other scores stays.
    """
    distance = (boxes[None] - want[:, None]).abs().amax(dim=2)  # (stored, ours)
    order = distance.masked_fill(scores != scores[:, None], torch.inf).argmin(dim=1)
    return order if len(order.unique()) == len(order) else torch.arange(len(boxes))


def _selection(case: Case, report: Report) -> None:
    boxes, prob = (torch.from_numpy(case.array(f"in.{name}")) for name in ("boxes", "prob"))
    boxes = boxes / case.json["scale"]
    report.close("out.boxes", boxes, case.array("out.boxes"), **PIXEL)
    confidence = class_confidence(iou(boxes, boxes), prob)
    report.equal("out.confidence", confidence.double(), case.array("out.confidence"))
    prefix = "out.keep_"
    for name in (name for name in case.arrays if name.startswith(prefix)):
        threshold = float(name.removeprefix(prefix))
        keep = select_boxes(confidence, case.json["min_boxes"], case.json["max_boxes"], threshold)
        report.equal(name, keep, case.array(name))


@torch.inference_mode()
def _network(case: Case, report: Report) -> None:
    network = VisualGenomeDetector().eval()
    fill_detector(network, case.json["cls_score_gain"])
    pixels, scale = scaled_input(case.array("in.picture_bgr"))
    report.equal("input shape", list(pixels.shape), case.json["input_shape"])
    report.close("scale", scale, case.json["scale"])
    feature_map = network.backbone(pixels)
    prob, deltas = network.rpn(feature_map)
    maps = {"input": (pixels, {"atol": 2e-3, "rtol": 0.0}), "features": (feature_map, TOLERANCE)}
    maps |= {"prob": (prob, PROBABILITY), "deltas": (deltas, TOLERANCE)}
    for name, (got, tolerance) in maps.items():
        report.close(name, _strided(got, case.json["strides"][name]), case.array(f"out.{name}_strided"), **tolerance)
    height, width = pixels.shape[2:]
    proposals = network.propose(feature_map, (width, height), scale)
    features = network.pool(feature_map, proposals.boxes)
    scores = network.classify(features)
    got, want = _matched(report, "proposals", proposals.boxes, case.array("out.proposals"))
    report.close("objectness", proposals.scores[got], case.array("out.objectness")[want, 0], **PROBABILITY)
    outputs = {"pool5": (features, TOLERANCE), "cls_prob": (scores.classes, PROBABILITY)}
    outputs |= {"attr_prob": (scores.attributes, PROBABILITY), "bbox": (scores.deltas, TOLERANCE)}
    for name, (value, tolerance) in outputs.items():
        stored = case.array(f"out.{name}_strided")[want]
        report.close(name, _strided(value[got], case.json["strides"][name]), stored, **tolerance)
    _compare_classes(case, report, scores.classes[got], want)
    boxes = proposals.boxes / scale
    confidence = class_confidence(iou(boxes, boxes), scores.classes)
    _compare_kept(case, report, boxes, confidence, features, (got, want))


def _compare_classes(case: Case, report: Report, classes: Tensor, want: Tensor) -> None:
    """The best class of each matched proposal. Another class is right if its probability is as good."""
    report.close("cls_max", classes.amax(dim=1), case.array("out.cls_max")[want], **PROBABILITY)
    stored = torch.from_numpy(case.array("out.cls_argmax"))[want]
    of_stored = classes.gather(1, stored[:, None])[:, 0]
    report.close("cls_argmax", of_stored, classes.amax(dim=1), **PROBABILITY)


def _compare_kept(
    case: Case, report: Report, boxes: Tensor, confidence: Tensor, features: Tensor, matched: tuple[Tensor, Tensor]
) -> None:
    limits = case.json
    keep = select_boxes(confidence, limits["min_boxes"], limits["max_boxes"], limits["threshold"])
    report.equal("kept", len(keep), limits["kept"])
    report.close("confidence", confidence[matched[0]], case.array("out.confidence")[matched[1]], **PROBABILITY)
    got, want = _matched(report, "kept boxes", boxes[keep], case.array("out.boxes"))
    # The row of a kept proposal differs where the order of two scores does. The boxes of the rows are compared.
    stored_keep = torch.from_numpy(case.array("out.keep"))[want]
    stored_boxes = torch.from_numpy(case.array("out.proposals"))[stored_keep] / limits["scale"]
    report.close("keep", boxes[keep[got]], stored_boxes, atol=SAME_BOX, rtol=0.0)
    sums = features[keep].double().sum(dim=1)
    report.close("pool5_sum", sums[got], case.array("out.pool5_sum")[want], atol=0.0, rtol=1e-3)


def _matched(report: Report, name: str, boxes: Tensor, stored: np.ndarray) -> tuple[Tensor, Tensor]:
    """Indices of our boxes and of the stored ones [M] that are the same within 0.1 pixel."""
    distance = (torch.from_numpy(stored)[:, None] - boxes).abs().amax(dim=2)  # (stored, ours)
    nearest = distance.min(dim=1) if len(boxes) else None
    if nearest is None:
        report.fail(name, "no boxes")
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    want = (nearest.values <= SAME_BOX).nonzero().flatten()
    report.equal(f"{name} found", len(want) >= MATCHED * len(stored), True)
    report.note(f"{name}: {len(want)} of {len(stored)} found")
    return nearest.indices[want], want


def _strided(value: Tensor, strides: list[int]) -> Tensor:
    return value[tuple(slice(None, None, stride) for stride in strides)]


@torch.no_grad()
def fill_detector(network: VisualGenomeDetector, cls_score_gain: float = 1.0) -> None:
    """Set all weights by the detector's weight rule, whose keys are the blobs of the Caffe model."""
    for layer, name in _convolutions(network).items():
        network.get_submodule(name).weight.copy_(_blob(f"{layer}.0", network.get_submodule(name).weight))
        norm = network.get_submodule(_norm_of(name))
        bn, scale = (f"{kind}{layer.removeprefix('res')}".replace("conv1", "_conv1") for kind in ("bn", "scale"))
        factor = _blob(f"{bn}.2", torch.empty(1))
        norm.running_mean.copy_(_blob(f"{bn}.0", norm.running_mean) / factor)
        norm.running_var.copy_(_blob(f"{bn}.1", norm.running_var) / factor)
        norm.weight.copy_(_blob(f"{scale}.0", norm.weight))
        norm.bias.copy_(_blob(f"{scale}.1", norm.bias))
    gains = {"rpn_bbox_pred": 0.2, "cls_score": cls_score_gain}
    for layer, name in HEADS.items():
        for i, parameter in enumerate(network.get_submodule(name).parameters()):
            parameter.copy_(_blob(f"{layer}.{i}", parameter, gains.get(layer, 1.0)))


# Caffe layer -> module with weight and bias, or with a table.
HEADS = {
    "rpn_conv/3x3": "rpn.conv",
    "rpn_cls_score": "rpn.objectness",
    "rpn_bbox_pred": "rpn.deltas",
    "cls_score": "cls_score",
    "bbox_pred": "bbox_pred",
    "cls_embedding": "cls_embedding",
    "fc_attr": "fc_attr",
    "attr_score": "attr_score",
}
BRANCHES = {"branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3", "branch1": "downsample.0"}


def _convolutions(network: VisualGenomeDetector) -> dict[str, str]:
    """Caffe layer of each convolution that has a norm -> its module."""
    found = {"conv1": "backbone.conv1"}
    stages = {2: "backbone.layer1", 3: "backbone.layer2", 4: "backbone.layer3", 5: "head"}
    for stage, module in stages.items():
        count = len(network.get_submodule(module))  # type: ignore[arg-type]
        names = "abc" if count == 3 else ["a", *(f"b{i}" for i in range(1, count))]
        for i, block in enumerate(names):
            for branch, conv in BRANCHES.items():
                if branch != "branch1" or i == 0:
                    found[f"res{stage}{block}_{branch}"] = f"{module}.{i}.{conv}"
    return found


def _norm_of(name: str) -> str:
    """The module of the norm after a convolution."""
    return name.removesuffix("0") + "1" if name.endswith("downsample.0") else name.replace("conv", "bn")


def _blob(key: str, like: Tensor, gain: float = 1.0) -> Tensor:
    """The float32 values of a blob of the shape of `like`."""
    x = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(like.shape), dtype=np.float64)
    return torch.from_numpy((_blob_values(key, x) * gain).astype(np.float32))


def _blob_values(key: str, x: np.ndarray) -> np.ndarray:
    """The lines of the README's table in its order."""
    layer, blob = key.rsplit(".", 1)
    if layer.startswith("bn"):
        if blob == "2":
            return np.full_like(x, 2.0)
        if blob == "0":
            return 2 * 0.1 * x
        return 2 * (1 + 0.1 * np.abs(x)) * (1e4 if layer == "bn_conv1" else 1)
    if layer.startswith("scale"):
        if blob == "1":
            return 0.02 * x
        return 0.2 + 0.02 * x if layer.endswith("branch2c") else 1 + 0.1 * x
    if x.ndim == 4:
        return x * np.sqrt(2 / (x.shape[1] * x.shape[2] * x.shape[3]))
    if layer == "cls_embedding":
        return 0.15 * x
    if x.ndim == 2:
        return x * np.sqrt(1 / x.shape[1])
    return 0.02 * x

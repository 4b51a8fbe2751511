"""The box source that a command line names, and the sources that are detectors."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.transforms.functional import to_tensor

from common.detect.selection import class_confidence, select_boxes
from common.regions.arguments import DEFAULT_LIMITS, SOURCES, DetectorLimits
from common.regions.box_sources import (
    BoxSource,
    CocoBoxes,
    GridBoxes,
    ImageEntry,
    JsonBoxes,
    ModuleBoxes,
    StoredBoxes,
    VcrBoxes,
    coco_name,
)
from common.regions.open import open_regions
from common.regions.regions import Regions


class TorchvisionBoxes(BoxSource):
    """torchvision's Faster R-CNN (ResNet-50 FPN) with weights from a local file; proposals chosen as in original 7.7.

    The number of classes is read from the weights. Regions have class_scores [R, classes], background in column 0.
    Raises FileNotFoundError if there is no such file.
    """

    of_stored_pixels = False

    def __init__(self, weights: str, limits: DetectorLimits, device: str) -> None:
        if not Path(weights).is_file():
            raise FileNotFoundError(f"no detector weights at {weights}: give a local torchvision state dict")
        state = torch.load(weights, map_location="cpu", weights_only=True)
        num_classes = len(state["roi_heads.box_predictor.cls_score.bias"])
        self._model = fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=num_classes, rpn_post_nms_top_n_test=300
        )
        self._model.load_state_dict(state)
        self._model.to(device).eval()
        self._limits, self._device = limits, device

    @torch.inference_mode()
    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        images, _ = self._model.transform([to_tensor(image).to(self._device)])
        maps = self._model.backbone(images.tensors)
        proposals, _ = self._model.rpn(images, maps)
        heads = self._model.roi_heads
        pooled = heads.box_roi_pool(maps, proposals, images.image_sizes)
        scores = heads.box_predictor(heads.box_head(pooled))[0].softmax(1)
        height, width = images.image_sizes[0]
        boxes = proposals[0] * proposals[0].new_tensor([image.width / width, image.height / height] * 2)
        limits = self._limits
        boxes, scores = boxes.cpu(), scores.cpu()
        keep = select_boxes(class_confidence(boxes, scores), limits.min_boxes, limits.max_boxes, limits.threshold)
        return Regions(boxes[keep], class_scores=scores[keep])


def build_source(
    spec: str,
    limits: DetectorLimits = DEFAULT_LIMITS,
    device: str = "cpu",
    with_features: bool = False,
    with_classes: bool = False,
    name_of: Callable[[str], str] = coco_name,
) -> BoxSource:
    """Returns the source that "<kind>:<argument>" names (SOURCES).

    limits, device: for a detector. with_features: for a store. with_classes: for a COCO file. name_of: for a COCO file
    and a store. Raises ValueError for an unknown kind, FileNotFoundError for a missing file.
    """
    kind, _, argument = spec.partition(":")
    if kind == "coco":
        return CocoBoxes(argument, name_of, with_classes)
    if kind == "vcr":
        return VcrBoxes(argument)
    if kind == "json":
        return JsonBoxes(argument)
    if kind == "regions":
        return StoredBoxes(open_regions(argument), with_features, name_of)
    if kind == "detector":
        return TorchvisionBoxes(argument, limits, device)
    if kind == "module":
        return ModuleBoxes(argument)
    if kind == "grid" and (match := re.fullmatch(r"(\d+)x(\d+)", argument)):
        return GridBoxes(int(match[1]), int(match[2]))
    raise ValueError(f"unknown box source {spec!r}; there are: {SOURCES}")

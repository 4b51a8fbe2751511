"""The box source that a command line names, and the sources that are detectors."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from PIL import Image
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops import box_iou, clip_boxes_to_image
from torchvision.transforms.functional import to_tensor

from common.detect.detector import Detector
from common.detect.selection import class_confidence, select_boxes
from common.detect.weights import load_detector
from common.errors import CheckpointError, ConfigError
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
)
from common.regions.open import open_regions
from common.regions.regions import Regions
from common.weights.build import FAST
from common.weights.checkpoint import load_model
from common.weights.foreign import read_tensors

log = logging.getLogger(__name__)


class VisualGenomeBoxes(BoxSource):
    """The detector of bottom-up attention: boxes, class scores [R, 1601] and attribute scores [R, 401].

    with_features: the regions also have the detector's own features [R, 2048], with which the published
    models of precomputed features were trained. Like the published files, they have no feature of the whole image.
    """

    of_stored_pixels = False  # it finds boxes in the image that it is given, turned or not

    def __init__(self, detector: Detector, with_features: bool = False) -> None:
        self.detector, self._with_features = detector, with_features

    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        [found] = self.detector([image])
        return Regions(
            found.boxes,
            found.features if self._with_features else None,
            class_scores=found.class_scores,
            attribute_scores=found.attribute_scores,
            width=image.width,
            height=image.height,
        )


class TorchvisionBoxes(BoxSource):
    """torchvision's Faster R-CNN (ResNet-50 FPN) with weights from a local file; proposals chosen as in original 7.7.

    The number of classes is read from the weights. Regions have class_scores [R, classes], background in column 0.
    Raises FileNotFoundError if there is no such file, and CheckpointError for weights of another model.
    """

    of_stored_pixels = False

    def __init__(self, weights: str, limits: DetectorLimits, device: str) -> None:
        if not Path(weights).is_file():
            raise FileNotFoundError(f"no detector weights at {weights}: give a local torchvision state dict")
        state = read_tensors(Path(weights))
        if (bias := state.get("roi_heads.box_predictor.cls_score.bias")) is None:
            raise CheckpointError(
                f"detector weights {weights}: expected a state dict of torchvision's fasterrcnn_resnet50_fpn, got keys "
                f"such as {', '.join(list(state)[:2])}; for the Visual Genome detector use vg:{weights}"
            )
        self._model = fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=len(bias), rpn_post_nms_top_n_test=300
        )
        load_model(self._model, state, f"detector weights {weights}")
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
        boxes = clip_boxes_to_image(boxes, (image.height, image.width))  # rounding may end beyond the image
        limits = self._limits
        boxes, scores = boxes.cpu(), scores.cpu()
        keep = select_boxes(
            class_confidence(box_iou(boxes, boxes), scores), limits.min_boxes, limits.max_boxes, limits.threshold
        )
        return Regions(boxes[keep], class_scores=scores[keep])


def build_detector(
    path: str, limits: DetectorLimits, device: torch.device | str, precision: torch.dtype = torch.float32
) -> Detector:
    """The Visual Genome detector of a weight file, built of the faster classes. Raises as `load_detector` does."""
    network, report = load_detector(path, FAST)
    log.info("%s", report)
    return Detector(network, limits, device, precision)


def build_source(
    spec: str,
    limits: DetectorLimits = DEFAULT_LIMITS,
    device: str = "cpu",
    with_features: bool = False,
    with_classes: bool = False,
    precision: torch.dtype = torch.float32,
) -> BoxSource:
    """Returns the source that "<kind>:<argument>" names (SOURCES).

    limits, device: for a detector. precision: of the Visual Genome detector. with_features: for that detector and a
    store. with_classes: for a COCO file.
    Raises ConfigError for an unknown kind, FileNotFoundError for a missing file, and CheckpointError for weights that
    are not those of a detector.
    """
    kind, _, argument = spec.partition(":")
    if kind == "coco":
        return CocoBoxes(argument, with_classes)
    if kind == "vcr":
        return VcrBoxes(argument)
    if kind == "json":
        return JsonBoxes(argument)
    if kind == "regions":
        return StoredBoxes(open_regions(argument), with_features)
    if kind == "vg":
        return VisualGenomeBoxes(build_detector(argument, limits, device, precision), with_features)
    if kind == "detector":
        return TorchvisionBoxes(argument, limits, device)
    if kind == "module":
        return ModuleBoxes(argument)
    if kind == "grid" and (match := re.fullmatch(r"(\d+)x(\d+)", argument)):
        return GridBoxes(int(match[1]), int(match[2]))
    raise ConfigError(f"unknown box source {spec!r}; there are: {SOURCES}")

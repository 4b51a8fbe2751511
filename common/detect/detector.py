"""The Visual Genome detector on a device: from images to boxes, classes, attributes and region features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from common.boxes import clip_boxes, iou
from common.detect.detections import Detections
from common.detect.image import NetworkInput, network_input
from common.detect.network import VisualGenomeDetector
from common.detect.proposals import decode
from common.detect.selection import class_confidence, select_boxes
from common.regions.arguments import DEFAULT_LIMITS, DetectorLimits
from common.regions.regions import check_finite_boxes


class Detector:
    """A network with weights on a device.

    Images pass through the network one after another (original 12.3). In a batch they would need padding, which changes
    the features near their edges. The RoIs of one image already fill a device: the RoI head has 1.8 of the 2 TFLOP.

    limits: which boxes are kept. precision: torch.float32, or torch.bfloat16 for convolutions in bf16. Boxes,
    probabilities and the heads behind the region features are computed in float32 in both.
    """

    def __init__(
        self,
        network: VisualGenomeDetector,
        limits: DetectorLimits = DEFAULT_LIMITS,
        device: torch.device | str = "cpu",
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.device, self.limits, self.precision = torch.device(device), limits, precision
        self.network = network.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[Detections]:
        """The boxes of RGB images of any sizes.

        Raises ImageError for an image that is too narrow.
        """
        return [self._detect(image) for image in images]

    @torch.inference_mode()
    def region_features(self, images: Sequence[Image.Image], boxes: Sequence[Tensor]) -> list[Tensor]:
        """Region features, float32 [R, 2048] on the CPU, of given boxes [R, 4] xyxy in pixels of the image as stored.

        Raises ImageError for an image that is too narrow, RegionError for a box that is NaN or infinite.
        """
        found = []
        for number, (image, of_image) in enumerate(zip(images, boxes, strict=True)):
            check_finite_boxes(of_image.cpu(), f"image {number + 1} of {len(images)}")
            pixels, scale = network_input(image)
            with self._autocast():
                feature_map = self.network.backbone(pixels.to(self.device))
                features = self.network.pool(feature_map, of_image.to(self.device, torch.float32) * scale)
            found.append(features.cpu())
        return found

    def _detect(self, image: Image.Image) -> Detections:
        source: NetworkInput = network_input(image)
        height, width = source.pixels.shape[2:]
        with self._autocast():
            feature_map = self.network.backbone(source.pixels.to(self.device))  # (1, 1024, h / 16, w / 16)
            proposals = self.network.propose(feature_map, (width, height), source.scale)
            features = self.network.pool(feature_map, proposals.boxes)  # (P, 2048)
        scores = self.network.classify(features)
        boxes = proposals.boxes / source.scale  # (P, 4)
        limits = self.limits
        confidence = class_confidence(iou(boxes, boxes), scores.classes)
        keep = select_boxes(confidence, limits.min_boxes, limits.max_boxes, limits.threshold)
        on_device = keep.to(self.device)
        classes, boxes = scores.classes[on_device], boxes[on_device]
        refined = refine(boxes, classes, scores.deltas[on_device], image.height, image.width)
        return Detections(
            boxes.cpu(),
            classes.cpu(),
            scores.attributes[on_device].cpu(),
            features[on_device].cpu(),
            proposals.scores[on_device].cpu(),
            confidence[keep],
            refined.cpu(),
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)


def refine(boxes: Tensor, classes: Tensor, deltas: Tensor, height: int, width: int) -> Tensor:
    """Boxes [R, 4] moved by the deltas [R, 4 * classes] of the best object class, clipped to the image.

    classes: [R, classes], probabilities. Background is no object class.
    """
    best = classes[:, 1:].argmax(dim=1) + 1  # (R,)
    moves = deltas.unflatten(1, (-1, 4))[torch.arange(len(boxes), device=boxes.device), best]  # (R, 4)
    return clip_boxes(decode(boxes, moves), width, height)

"""Region features of images, computed as training computes them: from the resized, normalised image."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from PIL import Image
from torch import Tensor

from common.boxes import clip_boxes
from common.data.collate import pad_stack
from common.data.transforms import Transform, TransformResult, blank_pixels
from common.detect.detector import Detector
from common.errors import InputError
from common.nn.fast_rcnn import FastRCNN
from common.regions.regions import check_finite_boxes

NEVER = random.Random(0)  # a Transform draws a number for its flip; with flip_prob 0 the number does not matter


class DetectorFeatures:
    """Computes region features with the Visual Genome detector (original 12.8), for models that were trained on them.

    Takes neither masks nor blanked boxes.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    def __call__(
        self,
        images: Sequence[Image.Image],
        boxes: Sequence[Tensor],
        masks: Sequence[Tensor] | None = None,
        blanked: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Features float32 [R_i, 2048] of each image, on the CPU. Raises InputError for masks and blanked boxes."""
        if masks or blanked:
            raise InputError("region features of a detector: masks and blanked boxes are not supported")
        return self._detector.region_features(
            images,
            # The last border is not that of `clip_boxes`, because boxes that the detector found reach it.
            [clip_boxes(own, image.width + 1, image.height + 1) for image, own in zip(images, boxes, strict=True)],
        )


class RegionFeatureExtractor:
    """Computes region features with the CNN of a FastRCNN.

    transform: of the images; it must not flip. precision: torch.float32, or torch.bfloat16 or torch.float16 for
    autocast.
    """

    def __init__(
        self, model: FastRCNN, transform: Transform, device: torch.device | str, precision: torch.dtype = torch.float32
    ) -> None:
        self._model = model.to(device).eval()
        self._transform = transform
        self._device = torch.device(device)
        self._precision = precision

    @torch.inference_mode()
    def __call__(
        self,
        images: Sequence[Image.Image],
        boxes: Sequence[Tensor],
        masks: Sequence[Tensor] | None = None,
        blanked: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Features float32 [R_i, 2048] of each image, on the CPU.

        images: RGB. boxes: [R_i, 4] of each image, xyxy in its pixels. masks: [R_i, S, S] of each image, instance masks
        on the output of the RoI head. blanked: [n_i, 4] of each image, boxes whose pixels become the mean colour.
        Raises RegionError for a box that is NaN or infinite.
        In a batch the smaller images are zero-padded. As in training, this changes features near their right and bottom
        edge a little.
        """
        states = [self._state(image, own, image.size) for image, own in zip(images, boxes, strict=True)]
        pixels = [state.image for state in states if state.image is not None]
        for own, image, blank in zip(pixels, images, blanked or [], strict=bool(blanked)):
            blank_pixels(own, self._state(None, blank, image.size).inside)
        resized = [state.inside for state in states]
        for number, own in enumerate(resized):
            check_finite_boxes(own, f"image {number + 1} of {len(images)}")
        counts = [len(own) for own in resized]
        batch = [
            pad_stack(pixels, 0.0),
            pad_stack(resized, 0.0),
            pad_stack([torch.ones(n, dtype=torch.bool) for n in counts], False),
        ]
        if masks is not None:
            batch.append(pad_stack(masks, 0.0))
        with self._autocast():
            features = self._model.region_features(*(t.to(self._device) for t in batch))
        return list(features.float().cpu().split(counts))

    def _state(self, image: Image.Image | None, boxes: Tensor, size: tuple[int, int]) -> TransformResult:
        return self._transform(image, boxes, torch.tensor([*size, 1.0, 1.0]), None, NEVER)

    def _autocast(self) -> AbstractContextManager:
        if self._precision == torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, self._precision)

"""Images and boxes to RoI features, as training computes them: on the resized, normalised image."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from PIL import Image
from torch import Tensor

from common.data.collate import pad_stack
from common.data.transforms import Transform, TransformResult, blank_pixels
from common.nn.fast_rcnn import FastRCNN

NEVER = random.Random(0)  # a transform draws whether it flips, and this one does not


class RegionEncoder:
    """The CNN of a FastRCNN with the transform of its images, which must not flip.

    precision: torch.float32, or torch.bfloat16 and torch.float16 for autocast.
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
        hidden: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """images: RGB. boxes: [R_i, 4] of each, xyxy in its own pixels. -> float32 [R_i, 2048] of each, on the CPU.

        masks: [R_i, S, S], instance masks on the RoI head's output. hidden: [n_i, 4], boxes whose pixels are blanked.
        With several images the smaller ones are zero-padded, which changes features near their right and bottom edge
        a little, as it does in training.
        """
        states = [self._state(image, rows, image.size) for image, rows in zip(images, boxes, strict=True)]
        pixels = [state.image for state in states if state.image is not None]
        for own, image, blank in zip(pixels, images, hidden or [], strict=bool(hidden)):
            blank_pixels(own, self._state(None, blank, image.size).inside)
        rows = [state.inside for state in states]
        counts = [len(r) for r in rows]
        batch = [
            pad_stack(pixels, 0.0),
            pad_stack(rows, 0.0),
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

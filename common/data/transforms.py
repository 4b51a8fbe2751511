"""Functions on an image and its boxes, and `Transform`, which a dataset applies to both (original 4.1 to 4.7)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.boxes import clip_boxes, flip_boxes


@dataclass(frozen=True)
class TransformResult:
    """The output of a Transform.

    image: float32 [3, height, width] normalised, or None. boxes: [R, >=4] in pixels of the resized image, not clipped.
    im_info: float32 (width, height, width ratio, height ratio, ...), the size without padding. masks: [R, S, S] or
    None. flipped: whether image, boxes and masks are mirrored; the text then swaps left and right.
    """

    image: Tensor | None
    boxes: Tensor
    im_info: Tensor
    masks: Tensor | None
    flipped: bool

    @property
    def inside(self) -> Tensor:
        """The boxes clipped to the resized image (original 4.7)."""
        return clip_boxes(self.boxes, float(self.im_info[0]), float(self.im_info[1]))


@dataclass(frozen=True)
class Transform:
    """Resizes, flips at random and normalises an image, with its boxes and masks.

    scales: shorter and longest allowed side in pixels. means, stds: of the BGR channels, in [0, 255].
    flip_prob: probability of mirroring. fixed_padding: pad all images to a canvas of one size.
    """

    scales: tuple[int, int]
    means: tuple[float, ...]
    stds: tuple[float, ...]
    flip_prob: float = 0.0
    fixed_padding: bool = False

    def __call__(
        self,
        image: Image.Image | None,
        boxes: Tensor,
        im_info: Tensor,
        masks: Tensor | None,
        rng: random.Random,
    ) -> TransformResult:
        """Returns the transformed image, boxes and masks; the arguments stay unchanged.

        image: RGB, or None with precomputed features and where `pixels` follows. boxes: [R, >=4] in pixels of that
        image. im_info: [>=4], starting with its width and height. masks: [R, S, S] relative to their box, or None.

        Draws one number from `rng`, whether it flips or not. Raises ValueError when the image is not RGB or not of the
        size in `im_info`.
        """
        width, height = int(im_info[0]), int(im_info[1])
        if image is not None and (image.mode != "RGB" or image.size != (width, height)):
            raise ValueError(
                f"image of mode {image.mode} and size {image.size[0]}x{image.size[1]}, expected RGB of the "
                f"{width}x{height} in im_info: does the annotation belong to this file?"
            )
        size = resize_size(width, height, *self.scales)
        ratios = resize_ratios((width, height), size)
        boxes = resize_boxes(boxes, ratios)
        flipped = rng.random() < self.flip_prob
        if flipped:
            boxes = flip_boxes(boxes, size[0])
            masks = None if masks is None else masks.flip(-1)
        info = torch.cat([torch.tensor(size, dtype=torch.float32), ratios, im_info[4:].float()])
        pixels = None if image is None else self.pixels(image, flipped)
        return TransformResult(pixels, boxes, info, masks, flipped)

    def pixels(self, image: Image.Image, flipped: bool) -> Tensor:
        """Returns float32 [3, height, width] of an RGB image: resized, mirrored if `flipped`, normalised."""
        image = image.resize(resize_size(*image.size, *self.scales), Image.Resampling.BILINEAR)
        if flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = look_up(image, pixel_levels(tuple(self.means), tuple(self.stds)))
        return pad_to_canvas(pixels, *self.scales) if self.fixed_padding else pixels


def resize_size(width: int, height: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Returns the width and height of the resized image: the shorter side is `min_size`, the longer at most `max_size`.

    Sizes are truncated to integers. An image whose shorter side is right already keeps its size (original 4.2).
    """
    short, long = min(width, height), max(width, height)
    size = min_size
    if long / short * size > max_size:
        size = int(max_size * short / long)
    if short == size:
        return width, height
    if width < height:
        return size, int(size * height / width)
    return int(size * width / height), size


def resize_ratios(old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Float32 [2]: new divided by old width and height, as reciprocal times new, like the original (original 4.3)."""
    return torch.tensor(old, dtype=torch.float32).reciprocal() * torch.tensor(new, dtype=torch.float32)


def resize_boxes(boxes: Tensor, ratios: Tensor) -> Tensor:
    """Boxes [R, >=4] in the frame of the resized image. ratios: [2], of the width and the height."""
    resized = boxes[:, :4] * torch.cat([ratios, ratios])
    return resized if boxes.shape[1] == 4 else torch.cat([resized, boxes[:, 4:]], dim=1)


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image to float32 [3, height, width] in [0, 1]."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))  # [height, width, 3], a copy
    return pixels.permute(2, 0, 1).contiguous().float().div_(255)


def normalise(image: Tensor, means: tuple[float, ...], stds: tuple[float, ...]) -> Tensor:
    """RGB in [0, 1] to BGR in [0, 255], minus the means, divided by the deviations. Shape [3, height, width]."""
    bgr = image.flip(0).mul_(255)  # flip copies
    return bgr.sub_(torch.tensor(means)[:, None, None]).div_(torch.tensor(stds)[:, None, None])


def look_up(image: Image.Image, levels: np.ndarray) -> Tensor:
    """RGB image to float32 [3, height, width], its BGR channels. levels: float32 [3, 256], the output of each value."""
    return look_up_bands([np.asarray(band) for band in image.split()], levels)


def look_up_bands(bands: Sequence[np.ndarray], levels: np.ndarray) -> Tensor:
    """`look_up` of the three channels of an RGB image, each uint8 [height, width]."""
    pixels = np.empty((3, *bands[0].shape), np.float32)
    for band, level, out in zip(reversed(bands), levels, pixels, strict=True):
        np.take(level, band, out=out, mode="clip")  # any mode but the default writes to `out` directly
    return torch.from_numpy(pixels)


@lru_cache
def pixel_levels(means: tuple[float, ...], stds: tuple[float, ...]) -> np.ndarray:
    """The `levels` of `look_up`: 256 values that went through `normalise`, so that every bit is the same."""
    greys = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    return normalise(greys.float().div_(255), means, stds)[:, 0].numpy()


def pad_to_canvas(image: Tensor, short: int, long: int) -> Tensor:
    """Puts the image [3, h, w] at the top left of zeros, `short` x `long` in its orientation (original 4.6)."""
    height, width = image.shape[1:]
    canvas = image.new_zeros((3, short, long) if height <= width else (3, long, short))
    canvas[:, :height, :width] = image
    return canvas


def blank_pixels(image: Tensor, boxes: Tensor) -> None:
    """Sets the image [3, h, w] in place to 0, the mean colour, inside boxes [n, 4] and on their borders."""
    for x1, y1, x2, y2 in boxes.int().tolist():
        image[:, y1 : y2 + 1, x1 : x2 + 1] = 0.0

"""Images of users: opened, their boxes found, and the features of each region computed once.

Boxes are xyxy in pixels of the upright image, turned by its EXIF orientation. Boxes of files are made for the pixels as
stored. With such a source the image is not turned.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from common.boxes import FEATURE_DIM, clip_boxes
from common.errors import BoxError, ConfigError, ImageError, InputError, RegionError, UserError
from common.files.images import as_rgb, decode_image, load_image
from common.predict.region_features import DetectorFeatures
from common.regions.box_sources import BoxSource, ImageEntry, ModuleBoxes, StoredBoxes
from common.regions.class_names import region_labels
from common.regions.lazy_features import read_features
from common.regions.names import region_name
from common.regions.regions import Regions

ImageLike = str | Path | bytes | Image.Image | np.ndarray

CACHE_BYTES = 512 * 2**20
MAX_BOXES = 1000
URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # Path has made one slash of two


# Computes region features: a RegionFeatureExtractor, or a stand-in with its arguments.
Extractor = Callable[..., list[Tensor]]


@dataclass
class UserImage:
    """An open image with its known boxes and features.

    pixels: RGB. name: by `region_name`, or a hash of the content. path: of the file; for messages. found: regions of
    the box source, None before it was asked. labels: of its boxes, by box. features: [2048] of each box, by box, mask
    and blanked boxes.
    """

    pixels: Image.Image
    name: str
    path: str
    found: Regions | None = None
    labels: dict[bytes, str] = field(default_factory=dict)
    features: dict[tuple[bytes, ...], Tensor] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return 3 * self.pixels.width * self.pixels.height + sum(4 * f.numel() for f in self.features.values())


class UserImages:
    """Opens images and computes region features. Keeps both, so that the next text about an image costs neither.

    extractor: computes region features; None for a model that takes no regions. source: boxes of images that come
    without boxes. limit: bytes of images and features to keep; the ones used longest ago are dropped first.
    num_extracted: regions whose features were computed so far.
    """

    def __init__(self, extractor: Extractor | None, source: BoxSource | None = None, limit: int = CACHE_BYTES) -> None:
        self.extractor, self.source, self.limit = extractor, source, limit
        self.num_extracted = 0
        self._kept: OrderedDict[Any, UserImage] = OrderedDict()

    def open(self, image: ImageLike) -> UserImage:
        """Raises FileNotFoundError and ImageError."""
        try:
            key = _key(image)
            if key not in self._kept:
                self._kept[key] = self._read(image, key)
        except (UserError, FileNotFoundError):
            raise
        except (OSError, ValueError) as error:  # a name that no file can have: with NUL, a lone surrogate, too long
            raise ImageError(f"image {str(image)!a:.100}: {_reason(error)}") from error
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(p.num_bytes for p in self._kept.values()) > self.limit:
            self._kept.popitem(last=False)
        return self._kept[key]

    def forget(self) -> None:
        """Drop all images and features."""
        self._kept.clear()

    def regions(self, image: UserImage, boxes: Any = None) -> Regions:
        """The given boxes [R, 4], or the regions of the source.

        Raises BoxError for a value that is no list of boxes, and if there are neither boxes nor a source.
        """
        if self.source is None and boxes is None:
            raise BoxError(
                f"{image.path}: no boxes given, and no source of boxes: name one, such as detector:WEIGHTS.pth, "
                "regions:STORE or grid:4x4"
            )
        if boxes is None or isinstance(self.source, StoredBoxes):  # a store has features of the given boxes, too
            self._find(image)
        if boxes is not None:
            return Regions(check_boxes(boxes, image.pixels.size))
        assert image.found is not None
        return image.found

    def region_features(
        self, image: UserImage, boxes: Tensor, masks: Tensor | None = None, blanked: Tensor | None = None
    ) -> Tensor:
        """Features float32 [R, 2048] of boxes [R, 4]; computes only those that are not known yet.

        masks: [R, S, S] on the output of the RoI head. blanked: [n, 4], boxes whose pixels are blanked first.
        """
        if not len(boxes):
            return torch.zeros(0, FEATURE_DIM)
        context = b"" if blanked is None or not len(blanked) else blanked.numpy().tobytes()
        outlines = [b""] * len(boxes) if masks is None else [mask.numpy().tobytes() for mask in masks]
        keys = [(_box_key(box), outline, context) for box, outline in zip(boxes, outlines, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in image.features]
        if new:
            if self.extractor is None:
                raise ValueError("these images have no feature extractor, because the model takes no regions")
            computed = self.extractor(
                [image.pixels],
                [boxes[new]],
                None if masks is None else [masks[new]],
                [blanked] if context and blanked is not None else None,
            )[0]
            self.num_extracted += len(new)
            image.features |= {keys[i]: feature for i, feature in zip(new, computed, strict=True)}
        return torch.stack([image.features[key] for key in keys])

    def labels(self, image: UserImage, boxes: Tensor) -> list[str]:
        """The label of each of boxes [R, 4], as in Prediction: "" for boxes that the source did not find.

        Does not ask the source. Of equal boxes, all have the label of the first.
        """
        return [image.labels.get(_box_key(box), "") for box in boxes]

    def stored_whole_feature(self, image: UserImage, boxes: Tensor) -> Tensor | None:
        """The feature [2048] of the whole image from a source with features, else None.

        Without a stored feature of the whole image, the mean over the features of boxes [R, 4] takes its place (without
        boxes, of those of the source), as in training. This holds for the features of a detector too.
        """
        found = image.found
        has_features = found is not None and found.features is not None
        if found is not None and found.image_feature is not None:
            return found.image_feature
        if found is not None and has_features and not len(boxes):
            boxes = found.boxes
        if not len(boxes) or not (has_features or isinstance(self.extractor, DetectorFeatures)):
            return None
        return self.region_features(image, boxes).mean(0)

    def _find(self, image: UserImage) -> None:
        """Ask the source for the regions of an image, once, and keep the features that it has."""
        if image.found is not None:
            return
        assert self.source is not None
        try:
            found = self.source.boxes(ImageEntry(image.name, image.path), image.pixels)
        except RegionError as error:
            raise BoxError(str(error)) from error
        except Exception as error:
            if not isinstance(self.source, ModuleBoxes):
                raise
            raise BoxError(f"find_boxes of the module failed: {_place_and_reason(error)}") from error
        found.boxes = check_boxes(_at_least_a_pixel(found.boxes), image.pixels.size)
        if found.features is not None:
            for box, feature in zip(found.boxes, read_features(found.features), strict=True):
                image.features[_box_key(box), b"", b""] = feature
        for box, label in zip(found.boxes, region_labels(found), strict=True):
            image.labels.setdefault(_box_key(box), label)
        image.found = found

    def _read(self, image: ImageLike, key: Any) -> UserImage:
        upright = self.source is None or not self.source.of_stored_pixels
        if isinstance(image, str | Path):
            if URL.match(str(image)) and not Path(image).exists():
                raise ImageError(f"image {image}: a URL: download the image first, and name the file")
            try:
                return UserImage(load_image(image, upright), region_name(str(image)), str(image))
            except (IsADirectoryError, PermissionError) as error:
                raise ImageError(f"image {image}: {error.strerror}") from error
        name = key[1][:12]
        what = f"image {name}"
        if isinstance(image, bytes):
            return UserImage(decode_image(image, what, upright), name, what)
        return UserImage(as_image(image), name, what)


def as_image(image: Image.Image | np.ndarray) -> Image.Image:
    """The upright RGB image of a PIL image or of an array uint8 [H, W, 3], [H, W, 4] or [H, W]. Raises ImageError."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
            raise ImageError(f"an array of {image.dtype} {list(image.shape)}: expected uint8 [H, W, 3] or [H, W]")
        image = Image.fromarray(image)
    try:
        return as_rgb(ImageOps.exif_transpose(image))
    except ValueError as error:
        raise ImageError(f"an image of mode {image.mode}: {error}") from error


def check_boxes(boxes: Any, size: tuple[int, int]) -> Tensor:
    """Any list of boxes as float32 [R, 4]. size: width and height of the image in pixels.

    Raises BoxError, also for a box without a part inside the image. A box may cross the border; the model gets the part
    inside.
    """
    try:
        checked = torch.as_tensor(np.asarray(boxes, dtype=np.float32).copy())
    except (TypeError, ValueError, OverflowError) as error:  # OverflowError: an integer of 400 digits
        raise BoxError(f"boxes: expected a list of [x1, y1, x2, y2]: {error}") from error
    if checked.numel() == 0:
        return torch.zeros(0, 4)
    if checked.dim() != 2 or checked.shape[1] != 4 or len(checked) > MAX_BOXES:
        raise BoxError(f"boxes: expected up to {MAX_BOXES} rows of [x1, y1, x2, y2], got {list(checked.shape)}")
    for i, box in enumerate(checked):
        if not box.isfinite().all() or box[0] > box[2] or box[1] > box[3]:
            raise BoxError(f"boxes[{i}] is {box.tolist()}: expected x1 <= x2 and y1 <= y2 in pixels")
        if (box[:2] >= torch.tensor(size)).any() or (box[2:] < 0).any():
            raise BoxError(f"boxes[{i}] is {box.tolist()}: outside of the image of {size[0]} x {size[1]} pixels")
    return checked


def _at_least_a_pixel(boxes: Tensor) -> Tensor:
    """Boxes [R, 4] of a source. Annotations of COCO thinner than a pixel end up to a pixel before they start."""
    first, last = boxes[:, :2], boxes[:, 2:]
    return torch.cat([first, torch.where((last < first) & (last > first - 1), first, last)], dim=1)


def whole_box(image: UserImage) -> Tensor:
    """The whole image as a box [1, 4]."""
    return torch.tensor([[0.0, 0.0, image.pixels.width - 1.0, image.pixels.height - 1.0]])


class ModuleFeatureExtractor:
    """Region features from the function `region_features(image, boxes)` of a Python module: an array [R, 2048].

    The function gets the part of each box inside the image. Takes neither masks nor blanked boxes. Raises ConfigError
    if there is no such module or function.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        try:
            self._features = importlib.import_module(module).region_features
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"encoder module:{module}: {error}") from error

    def __call__(
        self,
        images: Sequence[Image.Image],
        boxes: Sequence[Tensor],
        masks: Sequence[Tensor] | None = None,
        blanked: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        if masks or blanked:
            raise InputError("region features of a module: masks and blanked boxes are not supported")
        return [self._of_image(image, own) for image, own in zip(images, boxes, strict=True)]

    def _of_image(self, image: Image.Image, boxes: Tensor) -> Tensor:
        """Features float32 [R, 2048] of boxes [R, 4]. Raises InputError for any fault of the module's function."""
        what = f"region_features of module {self._module}"
        try:
            inside = clip_boxes(boxes, image.width + 1, image.height + 1)  # boxes of modules may end at the border
            features = torch.as_tensor(self._features(image, inside.numpy()), dtype=torch.float32)
        except Exception as error:  # the function is the user's
            raise InputError(f"{what} failed: {_place_and_reason(error)}") from error
        if features.shape != (len(boxes), FEATURE_DIM):
            raise InputError(f"{what} returned {list(features.shape)}: expected [{len(boxes)}, {FEATURE_DIM}]")
        if not features.isfinite().all():
            raise InputError(f"{what} returned NaN or infinite values: expected finite ones")
        return features


def _reason(error: Exception) -> str:
    """The reason of an error without the path, which may have thousands of characters."""
    return getattr(error, "strerror", None) or f"no name of a file: {getattr(error, 'reason', error)}"


def _place_and_reason(error: Exception) -> str:
    """The error of a user's function with the last line of code that ran."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"


def _key(image: ImageLike) -> tuple[Any, ...]:
    """Equal for equal images: by path, time of change and size, or by content."""
    if isinstance(image, str | Path):
        path = Path(str(image))
        state = path.stat() if path.is_file() else None
        return ("path", str(image), state and (state.st_mtime_ns, state.st_size))
    if isinstance(image, bytes):
        return ("bytes", hashlib.sha256(image).hexdigest())
    if not isinstance(image, Image.Image | np.ndarray):
        raise ImageError(f"a {type(image).__name__} is no image: expected a path, bytes, a PIL image or an array")
    pixels = np.asarray(image)
    look: tuple[Any, ...] = ()
    if isinstance(image, Image.Image):  # equal numbers are other colours in another mode or palette
        palette = image.palette.tobytes() if image.palette else b""
        look = (image.mode, palette, repr(image.info.get("transparency")), image.getexif().get(0x0112))
    return (
        "pixels",
        hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest(),
        pixels.shape,
        str(pixels.dtype),
        look,
    )


def _box_key(box: Tensor) -> bytes:
    return box.numpy().astype("<f4").tobytes()

"""Images that records name, and their regions."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from common.detect.sources import build_source
from common.errors import ImageError, RegionError
from common.files.images import decode_image
from common.precision import set_tf32
from common.predict.user_images import ModuleFeatureExtractor
from common.regions.arguments import DetectorLimits
from common.regions.box_sources import BoxSource, ImageEntry, name_in
from common.regions.names import region_name
from common.regions.regions import Regions
from data.own.lines import Problems
from data.regions.extract import Encode, Network, build_encoder, set_features

Boxes = tuple[tuple[float, ...], ...]
SMALLEST = 10  # pixels of a side


class UserImage:
    """An image that records name. first: the first of these lines. number: its name in the data set, from 1."""

    def __init__(self, path: Path, first: object, number: int) -> None:
        self.path, self.first, self.number = path, first, number
        self.size = (0, 0)
        self.boxes: Boxes | None = None

    @property
    def entry(self) -> ImageEntry:
        """The image as a box source knows it."""
        return ImageEntry(region_name(self.path), str(self.path))


class Images:
    """The images of a folder by their names in records, each path once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_path: dict[str, UserImage] = {}

    def add(self, name: str, line: object, boxes: Boxes | None, problems: Problems) -> UserImage:
        """Returns the image of a record. Adds a problem where another record has other boxes for it."""
        path = os.path.abspath(self.folder / name)
        image = self._by_path.setdefault(path, UserImage(Path(path), line, len(self._by_path) + 1))
        if boxes is not None and image.boxes not in (None, boxes):
            problems.add(line, f"{name} has other boxes than in a line before; regions belong to the image")
        image.boxes = image.boxes or boxes
        return image

    def __iter__(self) -> Iterator[UserImage]:
        return iter(self._by_path.values())

    def __len__(self) -> int:
        return len(self._by_path)

    def check(self, problems: Problems) -> list[str]:
        """Reads every image. Adds a problem for each that cannot be used. Returns notes on files of equal content."""
        same: dict[str, list[UserImage]] = defaultdict(list)
        for image in self:
            try:
                data = image.path.read_bytes()
                image.size = decode_image(data, str(image.path)).size
                if min(image.size) < SMALLEST:
                    raise ImageError(f"{image.path} has {image.size} pixels: a side needs at least {SMALLEST}")
            except FileNotFoundError:
                problems.add(image.first, f"no image {image.path}")
                continue
            except (ImageError, OSError) as error:
                problems.add(image.first, error)
                continue
            same[hashlib.sha256(data).hexdigest()].append(image)
            width, height = image.size
            if any(x2 > width or y2 > height for _, _, x2, y2 in image.boxes or ()):
                problems.add(image.first, f"a box lies outside of {image.path}, which has {width} x {height} pixels")
        equal = [found for found in same.values() if len(found) > 1]
        return [f"equal images: {', '.join(str(i.path) for i in found)}" for found in equal]


class OwnBoxes(BoxSource):
    """The boxes that the records have, else those of a source; features from an encoder, where there is one."""

    def __init__(self, boxes: Mapping[str, Boxes], source: BoxSource | None, encode: Encode | None) -> None:
        self._boxes, self._source, self._encode = boxes, source, encode

    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        if entry.path in self._boxes:
            regions = Regions(torch.tensor(self._boxes[entry.path], dtype=torch.float32))
        elif self._source is None:
            raise RegionError("the record has no boxes, though others have; give --boxes")
        else:
            regions = self._source.boxes(entry, image)
        if self._encode is not None:
            regions.width, regions.height = image.size
            set_features(self._encode, [image], [regions])
        return regions


def build_boxes(
    images: Sequence[UserImage], spec: str | None, encoder: str | None, limits: DetectorLimits, problems: Problems
) -> OwnBoxes:
    """Returns the source of all images. spec: --boxes. encoder: --encoder.

    Adds a problem for two images that the source cannot tell apart. Raises as `build_source` and `build_encoder` do.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    set_tf32(False, device)
    source = build_source(spec, limits, device, with_features=encoder is None) if spec else None
    if source is not None:
        _check_names(images, source, spec, problems)
    encode: Encode | None = None
    if encoder is not None and encoder.startswith("module:"):
        encode = ModuleFeatureExtractor(encoder.removeprefix("module:"))
    elif encoder is not None:
        encode = build_encoder(Network(weights=encoder.removeprefix("resnet:")), device)
    return OwnBoxes({str(i.path): i.boxes for i in images if i.boxes}, source, encode)


def _check_names(images: Sequence[UserImage], source: BoxSource, spec: str | None, problems: Problems) -> None:
    """Adds a problem for each image that has, in the source, the name of another image."""
    users: dict[str, UserImage] = {}
    for image in images:
        try:
            name = name_in(source, image.entry)
        except RegionError:
            continue  # without boxes; reported with the images that cannot be used
        if name is not None and users.setdefault(name, image) is not image and image.boxes is None:
            problems.add(image.first, f"{image.path} and {users[name].path} have one name in {spec}, {name!r}")

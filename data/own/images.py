"""Images that records name."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import ImageError
from common.files.images import decode_image
from common.regions.box_sources import ImageEntry
from common.regions.names import region_name
from data.own.lines import Problems

Boxes = tuple[tuple[float, ...], ...]
SMALLEST = 10  # pixels of a side


class UserImage:
    """An image that records name.

    first: the first of these lines. number: its name in the data set, from 1. size: width and height in pixels. boxes:
    those that the records give, xyxy in pixels. required: boxes that training needs beside those of a source. digest:
    of the content. fault: why it cannot be used, "" for a good image. found: boxes [R, 4] of its regions.
    """

    def __init__(self, path: Path, first: object, number: int) -> None:
        self.path, self.first, self.number = path, first, number
        self.size = (0, 0)
        self.boxes: Boxes | None = None
        self.required: Boxes = ()
        self.digest = ""
        self.fault = ""
        self.found: Tensor | None = None

    @property
    def entry(self) -> ImageEntry:
        """The image as a box source knows it."""
        return ImageEntry(region_name(self.path), str(self.path))

    def place(self, target: Path, link: bool) -> None:
        """Makes a copy, or a hard link, of the file. Readers find the format from the content."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            target.hardlink_to(self.path)
        else:
            shutil.copyfile(self.path, target)


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

    def check(self) -> list[str]:
        """Reads every image, and sets its size, digest and fault. Returns notes on files of equal content."""
        same: dict[str, list[UserImage]] = defaultdict(list)
        for image in self:
            try:
                data = image.path.read_bytes()
                image.digest = hashlib.sha256(data).hexdigest()
                image.size = decode_image(data, str(image.path)).size
            except FileNotFoundError:
                image.fault = f"no image {image.path}"
                continue
            except (ImageError, OSError) as error:
                image.fault = str(error)
                continue
            width, height = image.size
            if min(image.size) < SMALLEST:
                image.fault = f"{image.path} has {image.size} pixels: a side needs at least {SMALLEST}"
            elif any(x2 > width or y2 > height for _, _, x2, y2 in image.boxes or ()):
                image.fault = f"a box lies outside of {image.path}, which has {width} x {height} pixels"
            else:
                same[image.digest].append(image)
        equal = [found for found in same.values() if len(found) > 1]
        return [f"equal images: {', '.join(str(i.path) for i in found)}" for found in equal]

    def keep(self, used: Iterable[UserImage]) -> None:
        """Forgets the images that are not in `used`."""
        numbers = {image.number for image in used}
        self._by_path = {path: image for path, image in self._by_path.items() if image.number in numbers}


def read_box(box: Any) -> tuple[float, ...]:
    """Returns a box xyxy. Raises ValueError."""
    if not isinstance(box, Sequence) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        raise ValueError(f"a box must be [x1, y1, x2, y2] in pixels, got {box!r:.80}")
    x1, y1, x2, y2 = map(float, box)
    if not (0 <= x1 < x2 < float("inf") and 0 <= y1 < y2 < float("inf")):
        raise ValueError(f"a box must have 0 <= x1 < x2 and 0 <= y1 < y2, got {box!r:.80}")
    return x1, y1, x2, y2

"""Where the boxes of an image come from: a COCO file, VCR metadata, our own JSON, region files, a detector, a grid.

A source is asked for the boxes of one image at a time. Boxes are float32 [R, 4], xyxy, in pixels of the original
image.
"""

from __future__ import annotations

import importlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

from common.boxes import clip_boxes
from common.errors import DataError, RegionError
from common.files.archives import list_files, read_bytes
from common.files.images import IMAGE_SUFFIXES
from common.files.json_files import list_under, read_json
from common.regions.regions import Regions, RegionStore


@dataclass(frozen=True)
class ImageEntry:
    """One image. name: of its regions in a store. path: of the file or an archive's member.

    size: width and height in pixels by the annotations, None without them.
    """

    name: str
    path: str
    size: tuple[int, int] | None = None


class BoxSource(ABC):
    """Lists the images of a folder and finds the boxes of each.

    of_stored_pixels: the boxes are in the frame of the stored pixels, without the EXIF orientation.
    """

    of_stored_pixels = True

    def entries(self, folder: str) -> list[ImageEntry]:
        """Returns every image directly in `folder` (or "<archive>.zip@/<folder>"), named by its stem."""
        return [ImageEntry(Path(file).stem, f"{folder}/{file}") for file in list_files(folder, IMAGE_SUFFIXES)]

    @abstractmethod
    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        """Returns regions with boxes and, where the source has them, class_scores.

        image: RGB. Raises RegionError if the source has no boxes of this image, or has them for another size of it.
        """


def coco_name(file_name: str) -> str:
    """ "COCO_train2014_000000000009.jpg" -> "9": region files of COCO are named by the image id.

    Returns the stem of a file name that does not end in a number.
    """
    match = re.search(r"(\d+)$", Path(file_name).stem)
    return str(int(match[1])) if match else Path(file_name).stem


class CocoBoxes(BoxSource):
    """All annotations of a COCO instances file, crowds included, in file order. An image without annotations has one
    box, the whole image. The file lists the images, not the folder.

    name_of: the name of an image from its file_name. with_classes: adds one-hot class scores, float32 [R, 1 + number of
    categories], in the order of the file; column 0 is the background and the class of a whole image.
    Raises DataError for a file that is not in this format.
    """

    def __init__(self, path: str, name_of: Callable[[str], str] = coco_name, with_classes: bool = False) -> None:
        content = read_json(path, "COCO instances")
        images = list_under(content, "images", path)
        has_annotations = with_classes or "annotations" in content  # image_info_test2015.json has none
        annotations = list_under(content, "annotations", path) if has_annotations else []
        categories = list_under(content, "categories", path) if with_classes else []
        try:
            self._columns = {category["id"]: i for i, category in enumerate(categories, start=1)}
            self._images = {name_of(image["file_name"]): image for image in images}
            self._annotations: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in images}
            for annotation in annotations:
                self._annotations[annotation["image_id"]].append(annotation)
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path}: an image, category or annotation lacks something or has no image: {error!r}"
            ) from error
        self._path, self._with_classes = path, with_classes

    @property
    def names(self) -> Collection[str]:
        """The names of the images in the file."""
        return self._images.keys()

    def entries(self, folder: str) -> list[ImageEntry]:
        return [
            ImageEntry(name, f"{folder}/{image['file_name']}", (image["width"], image["height"]))
            for name, image in self._images.items()
        ]

    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        if entry.name not in self._images:
            raise RegionError(f"{self._path} has no image {entry.name}")
        listed = self._images[entry.name]
        size = listed["width"], listed["height"]
        if image.size != size:
            raise RegionError(f"{entry.path} is {image.size}, its annotation says {size}")
        annotations = self._annotations[listed["id"]]
        xywh = torch.tensor([a["bbox"] for a in annotations] or [[0, 0, *size]], dtype=torch.float64)
        xyxy = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:] - 1], dim=1)  # [R, 4], the last pixel is inside
        boxes = clip_boxes(xyxy, *size).float()
        return Regions(boxes, class_scores=self._one_hot(annotations) if self._with_classes else None)

    def _one_hot(self, annotations: Sequence[Mapping[str, Any]]) -> Tensor:
        columns = [self._columns[a["category_id"]] for a in annotations] or [0]
        return one_hot(torch.tensor(columns), len(self._columns) + 1).float()


class VcrBoxes(BoxSource):
    """The detections in the metadata of VCR images, all of them in order, without their scores.

    path: annotations, one JSON object a line. Each image of an annotation is listed once and named by its stem. Images
    and metadata lie in the folder of images (original 8.1). Raises RegionError for a line that names no image, and for
    two images of one stem.
    """

    def __init__(self, path: str) -> None:
        self._files: dict[str, tuple[str, str]] = {}  # stem -> image, metadata
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    files = str(row["img_fn"]), str(row["metadata_fn"])
                except (KeyError, TypeError, ValueError) as error:
                    raise RegionError(f"{path}, line {number}: no img_fn and metadata_fn: {error!r}") from error
                other = self._files.setdefault(Path(files[0]).stem, files)
                if other != files:
                    raise RegionError(f"{path}, line {number}: {files} and {other} have the same stem")

    def entries(self, folder: str) -> list[ImageEntry]:
        return [ImageEntry(name, f"{folder}/{image}") for name, (image, _) in self._files.items()]

    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        image_file, metadata_file = self._files[entry.name]
        path = entry.path.removesuffix(image_file) + metadata_file
        try:
            content = json.loads(read_bytes(path))
            rows = torch.tensor(content["boxes"], dtype=torch.float32)[:, :4]
        except FileNotFoundError as error:
            raise RegionError(str(error)) from error
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RegionError(f"{path}: no list of boxes x1, y1, x2, y2, score: {error!r}") from error
        size = content.get("width"), content.get("height")
        if None not in size and size != image.size:
            raise RegionError(f"{entry.path} is {image.size}, its metadata says {size}")
        return Regions(rows)


class JsonBoxes(BoxSource):
    """A JSON object {name: [[x1, y1, x2, y2], ...]} or {name: {"boxes": [...], "class_scores": [[...], ...]}}."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._entries = json.loads(Path(path).read_text())

    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        stored = self._entries.get(entry.name)
        if stored is None:
            raise RegionError(f"{self._path} has no boxes of {entry.name}")
        if isinstance(stored, list):
            stored = {"boxes": stored}
        try:
            boxes = torch.tensor(stored["boxes"], dtype=torch.float32)
            scores = torch.tensor(stored["class_scores"], dtype=torch.float32) if "class_scores" in stored else None
        except (KeyError, TypeError, ValueError) as error:
            raise RegionError(f"{self._path}: entry {entry.name} is no list of boxes: {error!r}") from error
        return Regions(boxes, class_scores=scores)


class StoredBoxes(BoxSource):
    """Boxes and class scores of existing region files, and with `with_features` their features.

    name_of: the second name to look an image up by. By default it is the number that the name ends in, under which
    images of COCO are stored.
    """

    def __init__(
        self, store: RegionStore, with_features: bool = False, name_of: Callable[[str], str] = coco_name
    ) -> None:
        self._store, self._with_features, self._name_of = store, with_features, name_of

    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        name = entry.name if entry.name in self._store else self._name_of(entry.name)
        try:
            stored = self._store.regions(name, self._with_features).in_memory()
        except FileNotFoundError as error:
            raise RegionError(str(error)) from error
        if stored.width and (stored.width, stored.height) != image.size:
            raise RegionError(f"{entry.path} is {image.size}, its regions are of {stored.width, stored.height}")
        return stored


class GridBoxes(BoxSource):
    """The cells of a grid of rows x columns, row by row. Needs no annotation; for tests and blind baselines."""

    of_stored_pixels = False

    def __init__(self, rows: int, columns: int) -> None:
        if rows < 1 or columns < 1:
            raise ValueError(f"a grid needs at least one row and column, got {rows} x {columns}")
        self._rows, self._columns = rows, columns

    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        width, height = image.size
        x = torch.linspace(0, width, self._columns + 1)
        y = torch.linspace(0, height, self._rows + 1)
        cells = [(x[c], y[r], x[c + 1] - 1, y[r + 1] - 1) for r in range(self._rows) for c in range(self._columns)]
        boxes = torch.tensor(cells)
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2])  # cells narrower than a pixel
        return Regions(boxes)


class ModuleBoxes(BoxSource):
    """The boxes that `find_boxes(image)` of a Python module returns: an array [R, 4] for an RGB image.

    Raises ValueError for a module that cannot be imported or has no such function.
    """

    of_stored_pixels = False

    def __init__(self, module: str) -> None:
        try:
            self._find = importlib.import_module(module).find_boxes
        except (ImportError, AttributeError) as error:
            raise ValueError(f"box source module:{module}: {error}") from error

    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        return Regions(torch.as_tensor(self._find(image), dtype=torch.float32).reshape(-1, 4))

"""Where the boxes of an image come from: a COCO file, VCR metadata, our own JSON, region files, a detector, a grid.

A source is asked for the boxes of one image at a time. Boxes are float32 [R, 4], xyxy, in pixels of the original
image.
"""

from __future__ import annotations

import importlib
import json
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

from common.boxes import clip_boxes
from common.errors import ConfigError, DataError, RegionError
from common.files.archives import list_files, read_bytes
from common.files.images import IMAGE_SUFFIXES
from common.files.json_files import list_under, parse_object, read_json
from common.files.text import read_text
from common.regions.names import check_same_file, region_name, stored_name, unique_names
from common.regions.regions import Regions, RegionStore

_ID, _NUMBER = (int, float, str), (int, float)  # of JSON values; pandas writes ids as 9.0
_KINDS = {str: "text", list: "a list", _ID: "an id", _NUMBER: "a number"}


@dataclass(frozen=True)
class ImageEntry:
    """One image. name: of its regions in a store, by `region_name`. path: of the file or an archive's member.

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
        """Returns every image directly in `folder` (or "<archive>.zip@/<folder>").

        Raises RegionError for two images of one name.
        """
        files = unique_names(list_files(folder, IMAGE_SUFFIXES), folder)
        return [ImageEntry(name, f"{folder}/{file}") for name, file in files.items()]

    @abstractmethod
    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        """Returns regions with boxes and, where the source has them, class_scores.

        image: RGB. Raises RegionError if the source has no boxes of this image, or has them for another size of it.
        """


class CocoBoxes(BoxSource):
    """All annotations of a COCO instances file, crowds included, in file order. An image without annotations has one
    box, the whole image. The file lists the images, not the folder.

    with_classes: adds one-hot class scores, float32 [R, 1 + number of categories], in the order of the file; column 0
    is the background and the class of a whole image.
    Raises DataError naming the file and the record that cannot be used.
    """

    def __init__(self, path: str, with_classes: bool = False) -> None:
        content = read_json(path, "COCO instances")
        images = list_under(content, "images", path)
        has_annotations = with_classes or "annotations" in content  # image_info_test2015.json has none
        annotations = list_under(content, "annotations", path) if has_annotations else []
        categories = list_under(content, "categories", path) if with_classes else []
        self._path, self._with_classes = path, with_classes
        self._columns: dict[int, int] = {}
        self._images: dict[str, dict[str, Any]] = {}  # by file_name
        self._annotations: dict[int, list[dict[str, Any]]] = {}  # by image id
        for i, category in enumerate(categories):
            _check_record(category, f"{path}: categories[{i}]", id=_ID)
            self._columns[category["id"]] = i + 1
        for i, image in enumerate(images):
            self._add_image(image, f"{path}: images[{i}]")
        for i, annotation in enumerate(annotations):
            self._add_annotation(annotation, f"{path}: annotations[{i}]")
        self._files: defaultdict[str, list[str]] = defaultdict(list)  # by name
        for file in self._images:
            self._files[region_name(file)].append(file)

    def _add_image(self, image: Any, where: str) -> None:
        _check_record(image, where, id=_ID, file_name=str, width=_NUMBER, height=_NUMBER)
        file = str(PurePosixPath(image["file_name"]))  # without "./"
        if file in self._images or image["id"] in self._annotations:
            raise DataError(f"{where}: another image has the id {image['id']} or the file_name {file}")
        self._images[file] = image
        self._annotations[image["id"]] = []

    def _add_annotation(self, annotation: Any, where: str) -> None:
        _check_record(annotation, where, image_id=_ID, bbox=list)
        bbox = annotation["bbox"]
        if len(bbox) != 4 or not all(isinstance(value, _NUMBER) and math.isfinite(value) for value in bbox):
            raise DataError(f"{where}: bbox must be 4 finite numbers x, y, width, height, got {bbox!r:.80}")
        if annotation["image_id"] not in self._annotations:
            raise DataError(f"{where}: no image has the id {annotation['image_id']}")
        if self._with_classes and annotation.get("category_id") not in self._columns:
            raise DataError(f"{where}: no category has the id {annotation.get('category_id')}")
        self._annotations[annotation["image_id"]].append(annotation)

    def entries(self, folder: str) -> list[ImageEntry]:
        return [
            ImageEntry(name, f"{folder}/{file}", (self._images[file]["width"], self._images[file]["height"]))
            for name, file in unique_names(self._images, self._path).items()
        ]

    def file_of(self, entry: ImageEntry) -> str:
        """Returns the file_name of an image: the listed one that its path ends in, or the only one of its name.

        Raises RegionError if the file does not list the image, and if it lists several images of this name.
        """
        parts = PurePosixPath(entry.path).parts
        for start in range(len(parts)):
            if (file := str(PurePosixPath(*parts[start:]))) in self._images:
                return file
        files = self._files.get(entry.name, [])
        if not files:
            raise RegionError(f"{self._path} does not list {entry.path} (name {entry.name!r})")
        if len(files) > 1:
            raise RegionError(f"{self._path} lists {files[0]} and {files[1]}, and either may be {entry.path}")
        return files[0]

    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        listed = self._images[self.file_of(entry)]
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

    path: annotations, one JSON object a line. Each image of an annotation is listed once. Images and metadata lie in
    the folder of images (original 8.1). Raises RegionError for a line that names no image, for two images of one name,
    and for two metadata files of one image.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._files: dict[str, tuple[str, str]] = {}  # name -> image, metadata
        for number, line in enumerate(read_text(path, "a JSON object a line").split("\n"), start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = parse_object(line, where)
            except DataError as error:
                raise RegionError(str(error)) from error
            files = str(row.get("img_fn")), str(row.get("metadata_fn"))
            if "img_fn" not in row or "metadata_fn" not in row:
                raise RegionError(f"{where}: expected img_fn and metadata_fn")
            other = self._files.setdefault(region_name(files[0]), files)
            check_same_file(other[0], files[0], where)
            if other != files:
                raise RegionError(f"{where}: {files[0]} has the metadata {other[1]} and {files[1]}")

    def entries(self, folder: str) -> list[ImageEntry]:
        return [ImageEntry(name, f"{folder}/{image}") for name, (image, _) in self._files.items()]

    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        image_file, metadata_file = self._files.get(entry.name, ("", ""))
        if not image_file or not entry.path.endswith(image_file):
            raise RegionError(f"{self._path} does not list {entry.path} (name {entry.name!r})")
        path = entry.path.removesuffix(image_file) + metadata_file
        try:
            content = json.loads(read_bytes(path))
            rows = torch.tensor(content["boxes"], dtype=torch.float32)[:, :4]
        except FileNotFoundError as error:
            raise RegionError(str(error)) from error
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RegionError(f"{path}: no list of boxes x1, y1, x2, y2, score: {error!r}") from error
        if not rows.isfinite().all():
            raise RegionError(f"{path}: boxes have values that are not finite")
        size = content.get("width"), content.get("height")
        if None not in size and size != image.size:
            raise RegionError(f"{entry.path} is {image.size}, its metadata says {size}")
        return Regions(rows)


class JsonBoxes(BoxSource):
    """A JSON object {name: [[x1, y1, x2, y2], ...]} or {name: {"boxes": [...], "class_scores": [[...], ...]}}.

    A name is that of `region_name`, or the stem of the file. Raises DataError naming the file and the record that
    cannot be used.
    """

    def __init__(self, path: str) -> None:
        content = read_json(path, "boxes")
        if not isinstance(content, dict):
            raise DataError(f"{path}: expected an object with boxes by name, got {type(content).__name__}")
        self._path = path
        self._regions = {name: _read_regions(value, f"{path}: {name!r}") for name, value in content.items()}

    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        name = stored_name(self._regions, entry.path, entry.name)
        if name not in self._regions:
            raise RegionError(f"{self._path} has no boxes of {name}")
        return replace(self._regions[name])  # a copy, which callers give a size


def _read_regions(value: Any, where: str) -> Regions:
    """Returns the regions of a JSON value. Raises DataError. where: the start of the message."""
    fields = {"boxes": value} if isinstance(value, list) else value
    if not isinstance(fields, dict) or "boxes" not in fields:
        raise DataError(f"{where}: expected a list of [x1, y1, x2, y2] or an object with 'boxes', got {value!r:.80}")
    boxes = _read_matrix(fields["boxes"], f"{where}: boxes", 4)
    if "class_scores" not in fields:
        return Regions(boxes)
    return Regions(boxes, class_scores=_read_matrix(fields["class_scores"], f"{where}: class_scores"))


def _read_matrix(value: Any, where: str, width: int | None = None) -> Tensor:
    """Returns a list of lists of numbers as float32 [R, width]. Raises DataError. width: None for any."""
    try:
        matrix = torch.tensor(value, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: null, or a number without end
        raise DataError(f"{where}: expected lists of equally many numbers: {error}") from error
    if value == []:
        return torch.zeros(0, width or 0)
    if matrix.dim() != 2 or width not in (None, matrix.shape[1]):
        raise DataError(f"{where}: expected shape [R, {width or 'classes'}], got {list(matrix.shape)}")
    if not matrix.isfinite().all():
        row = int((~matrix.isfinite()).any(1).nonzero()[0])
        raise DataError(f"{where}[{row}] is {matrix[row].tolist()!s:.80}: expected finite numbers")
    return matrix


def _check_record(record: Any, where: str, **kinds: type | tuple[type, ...]) -> None:
    """Raises DataError unless `record` is an object with values of these kinds. where: the start of the message."""
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object, got {record!r:.80}")
    for key, kind in kinds.items():
        if not isinstance(record.get(key), kind):
            came = f"{record[key]!r:.80}" if key in record else "nothing"
            raise DataError(f"{where}: {key} is {came}, expected {_KINDS[kind]}")


class StoredBoxes(BoxSource):
    """Boxes and class scores of existing region files, and with `with_features` their features."""

    def __init__(self, store: RegionStore, with_features: bool = False) -> None:
        self._store, self._with_features = store, with_features

    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        name = stored_name(self._store, entry.path, entry.name)
        try:
            stored = self._store.regions(name, self._with_features).in_memory()
        except FileNotFoundError as error:
            raise RegionError(str(error)) from error
        if stored.width and (stored.width, stored.height) != image.size:
            raise RegionError(f"{entry.path} is {image.size}, its regions are of {stored.width, stored.height}")
        return stored


def name_in(source: BoxSource, entry: ImageEntry) -> str | None:
    """The name by which a source of files knows an image; None for a source that looks at the image itself.

    Raises RegionError for an image that a COCO file does not list.
    """
    if isinstance(source, CocoBoxes):
        return source.file_of(entry)
    return entry.name if isinstance(source, StoredBoxes | JsonBoxes) else None


class GridBoxes(BoxSource):
    """The cells of a grid of rows x columns, row by row. Needs no annotation; for tests and blind baselines."""

    of_stored_pixels = False

    def __init__(self, rows: int, columns: int) -> None:
        if rows < 1 or columns < 1:
            raise ConfigError(f"a grid needs at least one row and column, got {rows} x {columns}")
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

    Raises ConfigError for a module that cannot be imported or has no such function.
    """

    of_stored_pixels = False

    def __init__(self, module: str) -> None:
        try:
            self._find = importlib.import_module(module).find_boxes
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"box source module:{module}: {error}") from error

    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        return Regions(torch.as_tensor(self._find(image), dtype=torch.float32).reshape(-1, 4))

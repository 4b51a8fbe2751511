"""Readers of the public forms of region features: TSV files, and folders with an .npz file for each image.

TSV, one image a line, without a header; arrays are base64 text of little-endian float32:

    bottom-up-attention   image_id  image_w  image_h  num_boxes  boxes  features
    LXMERT                img_id  img_h  img_w  objects_id  objects_conf  attrs_id  attrs_conf  num_boxes  boxes
                          features

The number of columns decides the form. LXMERT's object and attribute ids (int64) and their confidences are not read,
because an id is no distribution over classes. So neither form has class scores.

.npz, one file an image, named by the image:

    bottom-up-attention.pytorch   x [n, 2048]  bbox [n, 4]  num_bbox  image_h  image_w  (and `info`, which is not read)
    UNITER                        features [n, 2048]  norm_bb [n, 6 or 7]  (soft_labels [n, 1601])

norm_bb starts with x1, y1, x2, y2 as fractions of the image, whose size comes from the image file. Nothing that is
pickled is ever loaded.
"""

from __future__ import annotations

import binascii
import io
import os
import re
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.boxes import FEATURE_DIM
from common.errors import RegionError
from common.files.archives import list_files, read_bytes
from common.files.images import IMAGE_SUFFIXES
from common.regions.names import name_of_stem, unique_names
from common.regions.regions import Regions

CLASSES = 1601  # of Visual Genome, with the background
LONGEST_LINE = 2**27  # bytes; 10,000 boxes. A file without line ends is not read into memory as a whole.
_TSV = re.compile(r".*\.tsv(\.\d+)?", re.IGNORECASE)
# Column numbers of id, width, height, num_boxes, boxes and features.
_COLUMNS = {6: (0, 1, 2, 3, 4, 5), 10: (0, 2, 1, 7, 8, 9)}


class PublicImages(ABC):
    """Iterates over (name, Regions) of all images, each read when it is asked for.

    An image that comes again with the same content is skipped. total_bytes: of all files. bytes_read: of those, so far.
    duplicates: images skipped so far. Iteration raises RegionError naming the file, in a TSV file also the line.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.total_bytes = sum(file.stat().st_size for file in files)
        self.bytes_read = 0
        self.duplicates = 0

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[str, Regions]]: ...


def open_public(path: str | Path, images: str | None = None) -> PublicImages | None:
    """Returns the images of a TSV file, or of a folder of TSV parts or .npz files; None for another form.

    images: folder (or "<archive>.zip@/<folder>") of the image files, from which UNITER's features take the image sizes.
    Raises RegionError for a folder that mixes forms.
    """
    path = Path(path)
    if path.is_file():
        return None if path.suffix.lower() == ".zip" else TsvImages([path])
    if not path.is_dir() or path.suffix == ".packed":
        return None
    names = sorted(entry.name for entry in os.scandir(path) if entry.is_file())
    parts = [path / name for name in names if _TSV.fullmatch(name)]
    arrays = [path / name for name in names if name.lower().endswith(".npz")]
    region_files = [path / name for name in names if name.endswith(".json")]
    forms = [files[0].name for files in (parts, arrays, region_files) if files]
    if len(forms) > 1:
        raise RegionError(f"{path}: features in more than one form ({', '.join(forms)}); move them to own folders")
    if parts:
        return TsvImages(parts)
    return NpzImages(arrays, images) if arrays else None


class _Line(NamedTuple):
    """Where the line of an image is. file: its index. number: counted from 1. start: byte in the file."""

    file: int
    number: int
    start: int


class TsvImages(PublicImages):
    """The images of TSV files, line by line. Memory holds one line, and the name and the place of each image."""

    def __iter__(self) -> Iterator[tuple[str, Regions]]:
        self.bytes_read = self.duplicates = 0
        seen: dict[str, _Line] = {}
        for index, file in enumerate(self.files):
            for number, start, line in self._lines(file):
                self.bytes_read += len(line)
                if not line.strip():
                    continue
                name = name_of_stem(_image_id(line, f"{file}, line {number}"))
                first = seen.setdefault(name, _Line(index, number, start))
                if first != (index, number, start):
                    self._check_same(name, first, file, number, line)
                    self.duplicates += 1
                    continue
                yield name, _parse_line(line, f"{file}, line {number}")

    def _lines(self, file: Path) -> Iterator[tuple[int, int, bytes]]:
        """Yields the number, the first byte and the content of each line."""
        number = start = 0
        with file.open("rb", buffering=2**20) as opened:
            while line := opened.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE:
                    raise RegionError(f"{file}, line {number}: longer than {LONGEST_LINE} bytes; no TSV of features")
                yield number, start, line
                start += len(line)

    def _check_same(self, name: str, first: _Line, file: Path, number: int, line: bytes) -> None:
        with self.files[first.file].open("rb") as opened:
            opened.seek(first.start)
            before = opened.readline()
        if _after_id(before) != _after_id(line):
            raise RegionError(
                f"{file}, line {number}: image {name} again, with other content than {self.files[first.file]}, line "
                f"{first.number}; remove one of the lines"
            )


def _image_id(line: bytes, where: str) -> str:
    image_id = line.partition(b"\t")[0].strip()
    try:
        text = image_id.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    # --unpack names files by the id.
    if not text or len(text) > 250 or not text.isprintable() or "/" in text:
        raise RegionError(f"{where}: no image id in the first column, got {image_id[:40]!r}")
    return text


def _after_id(line: bytes) -> bytes:
    return line.rstrip(b"\r\n").partition(b"\t")[2]


def _parse_line(line: bytes, where: str) -> Regions:
    if not line.endswith(b"\n"):
        where += " (it has no line end; is the file cut off?)"
    fields = line.rstrip(b"\r\n").split(b"\t")
    if len(fields) not in _COLUMNS:
        raise RegionError(f"{where}: {len(fields)} columns, expected 6 (bottom-up-attention) or 10 (LXMERT)")
    _, width, height, count, boxes, features = (fields[column] for column in _COLUMNS[len(fields)])
    size = _positive(width, "image width", where), _positive(height, "image height", where)
    rows = _positive(count, "num_boxes", where)
    return _regions(
        _decode(boxes, "boxes", rows, 4, where), _decode(features, "features", rows, 2048, where), size, where
    )


def _positive(field: bytes, what: str, where: str) -> int:
    # No more digits than an int32 has: sizes are stored as that.
    if not re.fullmatch(rb"0*[1-9][0-9]{0,8}", field.strip()):
        raise RegionError(f"{where}: {what} must be a positive integer, got {field[:40].decode(errors='replace')!r}")
    return int(field)


def _decode(field: bytes, what: str, rows: int, columns: int, where: str) -> Tensor:
    """float32 [rows, columns] of base64 text. The tensor shares the decoded bytes, to be read only."""
    try:
        raw = binascii.a2b_base64(field)
    except binascii.Error as error:
        raise RegionError(f"{where}: {what}: no base64 text of {len(field)} characters: {error}") from error
    if len(raw) != rows * columns * 4:
        raise RegionError(
            f"{where}: {what} has {len(raw)} bytes, num_boxes {rows} means {rows} x {columns} float32 = "
            f"{rows * columns * 4} bytes"
        )
    values = np.frombuffer(raw, "<f4").reshape(rows, columns)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(values.astype(np.float32, copy=False))


def _regions(
    boxes: Tensor, features: Tensor, size: tuple[int, int], where: str, scores: Tensor | None = None
) -> Regions:
    """The regions of one image, after the checks that all forms share. where: file and line, for errors.

    boxes: xyxy in pixels. Up to one pixel outside of the image they are clipped. size: width and height.
    """
    for what, values in (("boxes", boxes.numpy()), ("features", features.numpy())):
        if not np.isfinite(values.min()) or not np.isfinite(values.max()):  # NaN if any value is
            raise RegionError(f"{where}: {what} has {int((~np.isfinite(values)).sum())} values that are not finite")
    low, high = boxes.amin(0).tolist(), boxes.amax(0).tolist()
    width, height = size
    if min(low) >= 0 and max(high) <= 1 and max(size) > 1:
        raise RegionError(f"{where}: boxes within 0 and 1 of an image of {width} x {height}; expected pixels")
    if min(low) < -1 or max(high[0], high[2]) > width + 1 or max(high[1], high[3]) > height + 1:
        raise RegionError(
            f"{where}: boxes from {low[:2]} to {high[2:]} lie outside of the image of {width} x {height} pixels"
        )
    if bool((boxes[:, 2:] < boxes[:, :2] - 1).any()):
        raise RegionError(f"{where}: a box ends before it starts; expected x1, y1, x2, y2")
    if min(low) < 0 or max(high[0], high[2]) > width or max(high[1], high[3]) > height:
        limits = torch.tensor([width, height, width, height], dtype=torch.float32)
        boxes = boxes.clamp(min=0).minimum(limits)
    return Regions(boxes, features, class_scores=scores, width=width, height=height)


class NpzImages(PublicImages):
    """The images of .npz files, one a file. images: folder of the image files, as in `open_public`."""

    def __init__(self, files: Sequence[Path], images: str | None = None) -> None:
        super().__init__(files)
        self._image_files: dict[str, str] | None = None
        if images is not None:
            self._image_files = {
                name: f"{images}/{file}"
                for name, file in unique_names(list_files(images, IMAGE_SUFFIXES), images).items()
            }

    def __iter__(self) -> Iterator[tuple[str, Regions]]:
        self.bytes_read = self.duplicates = 0
        seen: dict[str, Path] = {}
        for file in self.files:
            content = file.read_bytes()
            self.bytes_read += len(content)
            name = name_of_stem(file.stem)
            first = seen.setdefault(name, file)
            if first is file:
                yield name, self._parse(content, name, str(file))
            elif first.read_bytes() == content:
                self.duplicates += 1
            else:
                raise RegionError(f"{file}: image {name} again, with other content than {first}; remove one of them")

    def _parse(self, content: bytes, name: str, where: str) -> Regions:
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                if {"x", "bbox"} <= set(arrays.files):
                    return _read_attention(arrays, where)
                if {"features", "norm_bb"} <= set(arrays.files):
                    return self._read_uniter(arrays, name, where)
                found = ", ".join(arrays.files)
        except RegionError:
            raise
        except (BadZipFile, OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zlib.error) as error:
            raise RegionError(f"{where}: no .npz of arrays ({len(content)} bytes; cut off?): {error}") from error
        raise RegionError(f"{where}: has {found}; expected x and bbox, or features and norm_bb")

    def _read_uniter(self, arrays: Mapping[str, np.ndarray], name: str, where: str) -> Regions:
        features = _table(arrays, "features", FEATURE_DIM, None, where)
        fractions = _table(arrays, "norm_bb", None, len(features), where)
        if fractions.shape[1] not in (6, 7):
            raise RegionError(f"{where}: norm_bb has {fractions.shape[1]} columns, expected 6 or 7")
        size = self._image_size(name, where)
        scores = None
        if "soft_labels" in arrays:
            scores = _table(arrays, "soft_labels", None, len(features), where)
            sums = scores.sum(1)
            if scores.shape[1] != CLASSES or not bool(((sums - 1).abs() < 0.1).all()):
                scores = None
        boxes = fractions[:, :4] * torch.tensor([*size, *size], dtype=torch.float32)
        return _regions(boxes, features, size, where, scores)

    def _image_size(self, name: str, where: str) -> tuple[int, int]:
        if self._image_files is None:
            raise RegionError(
                f"{where}: boxes are fractions of the image and its size is not stored; add --images DIR, the folder "
                "of the image files"
            )
        if name not in self._image_files:
            raise RegionError(f"{where}: no image {name} among the {len(self._image_files)} files of --images")
        path = self._image_files[name]
        try:
            with Image.open(io.BytesIO(read_bytes(path)) if "@" in path else path) as image:
                return image.size  # of the header; the pixels stay undecoded
        except (OSError, SyntaxError, ValueError, BadZipFile) as error:
            raise RegionError(f"{path}: unreadable image: {error}") from error


def _read_attention(arrays: Mapping[str, np.ndarray], where: str) -> Regions:
    features = _table(arrays, "x", FEATURE_DIM, None, where)
    boxes = _table(arrays, "bbox", 4, len(features), where)
    numbers = {}
    for key in ("image_w", "image_h", "num_bbox"):
        value = arrays[key] if key in arrays else np.zeros(0)
        if value.size != 1 or value.dtype.kind not in "iuf" or value.item() != int(value.item()) or value.item() < 1:
            raise RegionError(f"{where}: {key} must be a positive integer, got {value.tolist()}")
        numbers[key] = int(value.item())
    if numbers["num_bbox"] != len(features):
        raise RegionError(f"{where}: num_bbox is {numbers['num_bbox']}, but x has {len(features)} rows")
    return _regions(boxes, features, (numbers["image_w"], numbers["image_h"]), where)


def _table(arrays: Mapping[str, np.ndarray], key: str, columns: int | None, rows: int | None, where: str) -> Tensor:
    """float32 [rows, columns] of an array, at least one row. None: any number."""
    values = arrays[key]
    shape = tuple(values.shape)
    fits = len(shape) == 2 and shape[0] >= 1 and shape[0] == (rows or shape[0]) and shape[1] == (columns or shape[1])
    if not fits or values.dtype.kind != "f":
        wanted = f"[{rows or 'n'}, {columns or 'columns'}]"
        raise RegionError(f"{where}: {key} must be floats {wanted}, got {values.dtype} {list(shape)}")
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))

"""Region boxes, features and class scores of images: one JSON file an image, a zip of those, or a packed store.

Frames: boxes are xyxy in pixels of the original image. The JSON format is the published one (spec 04 §10, 12 §3). A
packed store holds the same in a few flat files, mapped into memory, so that a read touches only the bytes asked for,
and features are read only when something looks at them:

    <name>.packed/  meta.json               format, dtype, counts, dims, where it comes from
                    names.npy               bytes [N], sorted: looked up by bisection, nothing is loaded at start
                    offsets.npy             int64 [N + 1]: image i has rows offsets[i] .. offsets[i + 1]
                    sizes.npy               int32 [N, 2] width, height; 0 where unknown
                    boxes.bin               float32 [rows, 4]
                    features.bin            dtype [rows, 2048]          (these three are optional)
                    image_features.bin      dtype [N, 2048]
                    mean_features.bin       float32 [N, 2048], of the features of an image; without image_features
                    class_scores.bin        dtype [rows, classes]
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import mmap
import os
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, ClassVar
from weakref import WeakValueDictionary
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from common.boxes import FEATURE_DIM
from common.errors import RegionError
from common.files.atomic import atomic_write
from common.files.images import exists, list_files, read_bytes
from common.regions.arguments import DTYPES
from common.regions.lazy_features import StoredRows

logger = logging.getLogger(__name__)

FORMAT = 1
_OPTIONAL = ("features", "image_feature", "class_scores")
_FILES = {
    "boxes": "boxes.bin",
    "features": "features.bin",
    "image_feature": "image_features.bin",
    "class_scores": "class_scores.bin",
    "mean": "mean_features.bin",
}
_PER_IMAGE = ("image_feature", "mean")
_FLOAT32 = ("boxes", "mean")


@dataclass
class Regions:
    """The regions of one image, in file order.

    boxes: float32 [R, 4], xyxy in pixels of the original image, R >= 1.
    features: float32 [R, 2048], or None; of a packed store they are not read yet. image_feature: float32 [2048] of the
    whole image, or None.
    class_scores: float32 [R, classes] (Visual Genome: 1601), softmax with background in column 0, or None.
    width, height: pixels of the original image, None where the file does not say.
    """

    boxes: Tensor
    features: Tensor | None = None
    image_feature: Tensor | None = None
    class_scores: Tensor | None = None
    width: int | None = None
    height: int | None = None


def with_image_box(
    boxes: Tensor, features: Tensor | None, image_feature: Tensor | None, width: int, height: int
) -> tuple[Tensor, Tensor | None]:
    """The whole image (0, 0, width - 1, height - 1) before the boxes [R, 4] and the features [R, 2048].

    Its feature is image_feature [2048], or the mean of the others (spec 30 §5). Features that are not read stay so.
    """
    boxes = torch.cat([torch.tensor([[0.0, 0.0, width - 1.0, height - 1.0]]), boxes])
    if isinstance(features, StoredRows) and features.unread and not features.with_first:
        return boxes, features.after(image_feature)
    if features is not None:
        whole = features.mean(0) if image_feature is None else image_feature
        features = torch.cat([whole[None], features])
    return boxes, features


@dataclass(frozen=True)
class Problem:
    """What is wrong with the regions of image `name`."""

    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


# The JSON of one image


def read_region_json(data: bytes, name: str, with_features: bool = True) -> Regions:
    """Parses one JSON file; the tensors own their memory, so they may be written to.

    name: what errors call the file. with_features: False leaves features and image_feature undecoded (None).
    Raises RegionError naming the file, the key and the lengths that disagree.
    """
    try:
        record = json.loads(data)
    except ValueError as error:
        raise RegionError(f"{name}: no JSON ({len(data)} bytes; cut off?): {error}") from error
    count = record.get("num_boxes") if isinstance(record, dict) else None
    if not isinstance(count, int) or count < 1:
        raise RegionError(f"{name}: num_boxes must be an integer of at least 1, got {count!r}")
    boxes = _decode(record, "boxes", name, count, 4)
    if boxes is None:
        raise RegionError(f"{name}: no key 'boxes'")
    image_feature = _decode(record, "image_box_feature", name, 1, FEATURE_DIM) if with_features else None
    return Regions(
        boxes=boxes,
        features=_decode(record, "features", name, count, FEATURE_DIM) if with_features else None,
        image_feature=None if image_feature is None else image_feature[0],
        class_scores=_decode(record, "classes", name, count, None),
        width=record.get("image_w"),
        height=record.get("image_h"),
    )


def write_region_json(regions: Regions, name: str) -> bytes:
    """The JSON of one image, as `read_region_json` reads it. name: the file's stem, the image id.

    Raises RegionError if row counts disagree.
    """
    count = len(regions.boxes)
    record: dict[str, Any] = {"image_id": int(name) if name.isdecimal() else name, "num_boxes": count}
    if regions.width is not None and regions.height is not None:
        record |= {"image_w": regions.width, "image_h": regions.height}
    check_shapes(regions, name)
    record["boxes"] = _encode(regions.boxes)
    for key, tensor in (
        ("features", regions.features),
        ("image_box_feature", regions.image_feature),
        ("classes", regions.class_scores),
    ):
        if tensor is not None:
            record[key] = _encode(tensor)
    return json.dumps(record).encode()


def save_regions(folder: str | Path, name: str, regions: Regions) -> None:
    """Writes `<folder>/<name>.json`: complete or not at all."""
    # Not synced: a file cut off by a crash is found and made again when the extraction goes on.
    with atomic_write(Path(folder) / f"{name}.json", sync=False) as f:
        f.write(write_region_json(regions, name))


def _decode(record: dict[str, Any], key: str, name: str, rows: int, columns: int | None) -> Tensor | None:
    """float32 [rows, columns] of a base64 value, None without the key. columns None: whatever the length gives."""
    text = record.get(key)
    if text is None:
        return None
    try:
        raw = base64.b64decode(text)
    except (binascii.Error, TypeError, ValueError) as error:
        raise RegionError(f"{name}: {key}: no base64 text ({error}; cut off?)") from error
    row_bytes = 4 * columns if columns else len(raw) // rows
    if not raw or row_bytes * rows != len(raw) or row_bytes % 4:
        wanted = f"{rows} x {columns} float32 = {rows * row_bytes} bytes" if columns else f"{rows} rows of float32"
        raise RegionError(f"{name}: {key} has {len(raw)} bytes, wanted {wanted}")
    return torch.from_numpy(np.frombuffer(raw, "<f4").astype(np.float32).reshape(rows, -1))


def _encode(tensor: Tensor) -> str:
    # An explicit float32: the reader takes the bytes as that, whatever the array was (spec 12, D-7).
    return base64.b64encode(tensor.detach().cpu().numpy().astype("<f4").tobytes()).decode()


def check_shapes(regions: Regions, name: str) -> None:
    """Raises RegionError unless every field has the shape that `Regions` says."""
    count = len(regions.boxes)
    if count < 1 or tuple(regions.boxes.shape) != (count, 4):
        raise RegionError(f"{name}: boxes must be [R, 4] with R >= 1, got {list(regions.boxes.shape)}")
    for key, wanted in (("features", (count, FEATURE_DIM)), ("image_feature", (FEATURE_DIM,))):
        tensor = getattr(regions, key)
        if tensor is not None and tuple(tensor.shape) != wanted:
            raise RegionError(f"{name}: {key} must be {list(wanted)}, got {list(tensor.shape)}")
    scores = regions.class_scores
    if scores is not None and (scores.ndim != 2 or len(scores) != count):
        raise RegionError(f"{name}: class_scores must be [{count}, classes], got {list(scores.shape)}")


# Stores


class RegionStore(ABC):
    """Regions by image name: the image id without padding for COCO, the file's stem otherwise.

    A store may be pickled (to a loader's workers) and used after a fork.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)

    @abstractmethod
    def regions(self, name: str | int, with_features: bool = True) -> Regions:
        """The regions of one image; with_features False skips reading features and image_feature.

        Raises FileNotFoundError for an image that is not there, RegionError for a damaged entry.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """The names of all images, sorted as strings."""

    @abstractmethod
    def __contains__(self, name: str | int) -> bool: ...


class JsonRegions(RegionStore):
    """One JSON an image, in a folder or in a zip (members at its root or in a folder of the archive's name)."""

    def regions(self, name: str | int, with_features: bool = True) -> Regions:
        try:
            path = self._file(name)
            return read_region_json(read_bytes(path), path, with_features)
        except BadZipFile as error:
            raise RegionError(str(error)) from error

    def names(self) -> list[str]:
        return sorted(file.removesuffix(".json") for file in list_files(self._folder, (".json",)))

    def __contains__(self, name: str | int) -> bool:
        return exists(self._file(name))

    def _file(self, name: str | int) -> str:
        return f"{self._folder}/{name}.json"

    @cached_property
    def _folder(self) -> str:
        if not self.path.endswith(".zip"):
            return self.path
        inner = f"{self.path}@/{Path(self.path).stem}"
        # COCO's archives hold a folder (spec 30 §2.5), those of Conceptual Captions do not (spec 12 §2).
        return inner if list_files(inner, (".json",)) else f"{self.path}@"


class PackedRegions(RegionStore):
    """A packed store (layout: top of this file), mapped into memory at the first read of each process.

    Raises RegionError if a file's length disagrees with the index.
    """

    # The stores that this process uses. A worker's message names its store, and here that store is mapped already.
    _in_use: ClassVar[WeakValueDictionary[str, PackedRegions]] = WeakValueDictionary()

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.meta: dict[str, Any] = json.loads((Path(path) / "meta.json").read_text())
        if self.meta["format"] != FORMAT:
            raise RegionError(f"{path}: packed format {self.meta['format']}, this program reads {FORMAT}")
        for key, shape in self._shapes().items():
            file = Path(path) / _FILES[key]
            wanted = shape[0] * shape[1] * self._dtype(key).itemsize
            if (found := file.stat().st_size if file.exists() else 0) != wanted:
                raise RegionError(f"{file}: {found} bytes, the index says {wanted}")
        self._in_use[self.path] = self

    def regions(self, name: str | int, with_features: bool = True) -> Regions:
        row = self._find(name)
        if row is None:
            raise FileNotFoundError(f"{self.path}: no regions of image {name}")
        start, stop = self._maps["offsets"][row : row + 2].tolist()
        width, height = (int(side) or None for side in self._maps["sizes"][row])
        image_feature = self._rows("image_feature", row, row + 1) if with_features else None
        boxes = self._rows("boxes", start, stop)
        assert boxes is not None, "a packed store always has boxes"
        return Regions(
            boxes=boxes,
            features=StoredRows(self, start, stop, image=row) if with_features and "features" in self._maps else None,
            image_feature=None if image_feature is None else image_feature[0],
            class_scores=self._rows("class_scores", start, stop),
            width=width,
            height=height,
        )

    def names(self) -> list[str]:
        return [name.decode() for name in self._maps["names"]]

    def __contains__(self, name: str | int) -> bool:
        return self._find(name) is not None

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickling a memory map would copy the whole file; the other process has its own.
        return _same_store, (self.path, self.meta)

    def mapped_features(self, start: int, stop: int) -> Tensor:
        """[stop - start, 2048] of the store's dtype in the mapped file: to be copied only, a write is a crash."""
        return self._features[start:stop]

    def mean(self, row: int) -> Tensor | None:
        """float32 [2048], the mean of the features of image number `row`; None in a store made without it."""
        found = self._rows("mean", row, row + 1)
        return None if found is None else found[0]

    def expect(self, start: int, stop: int) -> None:
        """Have the system fetch these features from the disk, without waiting for them."""
        features: Any = self._maps["features"]
        file, row = features.base.base, features.strides[0]  # the memmap's mmap
        first = start * row // mmap.PAGESIZE * mmap.PAGESIZE
        file.madvise(mmap.MADV_WILLNEED, first, stop * row - first)

    @cached_property
    def _maps(self) -> dict[str, np.ndarray]:
        folder = Path(self.path)
        names = ("names", "offsets", "sizes")
        # As plain arrays: a memmap is slow to index, because each part of it is made a memmap too.
        maps = {key: np.load(folder / f"{key}.npy", mmap_mode="r").view(np.ndarray) for key in names}
        for key, shape in self._shapes().items():
            maps[key] = np.memmap(folder / _FILES[key], self._dtype(key), "r", shape=shape).view(np.ndarray)
        return maps

    @cached_property
    def _features(self) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable")
            return torch.from_numpy(self._maps["features"])

    def _shapes(self) -> dict[str, tuple[int, int]]:
        count, rows, columns = self.meta["count"], self.meta["rows"], self.meta["columns"]
        return {key: (count if key in _PER_IMAGE else rows, width) for key, width in columns.items()}

    def _dtype(self, key: str) -> np.dtype:
        return np.dtype("float32" if key in _FLOAT32 else self.meta["dtype"]).newbyteorder("<")

    def _find(self, name: str | int) -> int | None:
        names, key = self._maps["names"], str(name).encode()
        if len(key) > names.itemsize:
            return None  # numpy would widen (copy) all names to compare them
        row = int(np.searchsorted(names, np.bytes_(key)))
        return row if row < len(names) and names[row] == key else None

    def _rows(self, key: str, start: int, stop: int) -> Tensor | None:
        """float32 copy of rows start .. stop, None where the store has no such file."""
        if key not in self._maps:
            return None
        return torch.from_numpy(np.array(self._maps[key][start:stop], dtype=np.float32))


def _same_store(path: str, meta: dict[str, Any]) -> PackedRegions:
    """The store of this process that another one knows by its path, opened if it is not in use yet."""
    store = PackedRegions._in_use.get(path) or PackedRegions(path)
    if store.meta != meta:  # the rows that the other process means would be other ones here
        raise RegionError(f"{path}: another store took its place during the run")
    return store


def open_regions(path: str | Path, zip_mode: bool = False) -> RegionStore:
    """The store at `path`: an explicit `.packed` folder, `.zip` or folder, or a path without ending.

    Without ending the order is `<path>.packed`; `<path>.zip` with zip_mode; the folder `<path>`; `<path>.zip`.
    Raises FileNotFoundError listing what was looked for.
    """
    text = str(path).rstrip("/")
    candidates = [f"{text}.packed", text, f"{text}.zip"]
    if zip_mode:
        candidates[1:] = reversed(candidates[1:])
    if text.endswith((".packed", ".zip")):
        candidates = [text]
    for candidate in candidates:
        if not os.path.exists(candidate):
            continue
        logger.info("regions from %s", candidate)
        return PackedRegions(candidate) if candidate.endswith(".packed") else JsonRegions(candidate)
    raise FileNotFoundError(f"no region files; looked for {', '.join(candidates)}")


# Converters


def pack(
    source: RegionStore,
    out: str | Path,
    dtype: str = "float32",
    info: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> PackedRegions:
    """Writes all images of `source` as a packed store, which appears under its name only when complete.

    out: a folder ending in `.packed`. dtype: "float32" (exact) or "float16", of features and class scores; boxes stay
    float32. info: kept in meta.json. overwrite: replace a store that is there.
    Raises RegionError naming an image that is damaged, lacks the first one's fields or does not fit into float16;
    FileExistsError if `out` exists.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES}, got {dtype!r}")
    if not str(out).endswith(".packed"):
        raise ValueError(f"a packed store's name ends in .packed, got {out}")
    names = sorted(source.names(), key=str.encode)
    if not names:
        raise RegionError(f"{source.path}: nothing to pack")
    with _new_folder(out, overwrite) as folder:
        offsets, sizes, columns = _pack_arrays(source, names, folder, np.dtype(dtype).newbyteorder("<"))
        np.save(folder / "names.npy", np.array([name.encode() for name in names]))
        np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64))
        np.save(folder / "sizes.npy", np.array(sizes, dtype=np.int32))
        meta = {"format": FORMAT, "dtype": dtype, "count": len(names), "rows": offsets[-1], "columns": columns}
        meta["info"] = dict(info or {})
        (folder / "meta.json").write_text(json.dumps(meta, indent=1))
    return PackedRegions(out)


def unpack(source: RegionStore, folder: str | Path) -> JsonRegions:
    """Writes every image of `source` as `<folder>/<name>.json`; the folder appears only when complete.

    Raises FileExistsError if the folder exists.
    """
    with _new_folder(folder, overwrite=False) as temporary:
        for name in source.names():
            save_regions(temporary, name, source.regions(name))
    return JsonRegions(folder)


def _pack_arrays(
    source: RegionStore, names: list[str], folder: Path, dtype: np.dtype
) -> tuple[list[int], list[tuple[int, int]], dict[str, int]]:
    """Appends every image to the .bin files; returns the offsets, the sizes and the width of each file's rows."""
    offsets, sizes, columns = [0], [], {"boxes": 4}
    files: dict[str, BinaryIO] = {}
    try:
        for name in names:
            regions = source.regions(name)
            check_shapes(regions, name)
            found = {key: value for key in _OPTIONAL if (value := getattr(regions, key)) is not None}
            widths = {"boxes": 4} | {key: value.shape[-1] for key, value in found.items()}
            if "features" in found and "image_feature" not in found:
                widths["mean"] = FEATURE_DIM  # stands for the image, and takes reading them all
            if not files:
                columns = widths
                files = {key: (folder / _FILES[key]).open("wb") for key in widths}
            if widths != columns:
                raise RegionError(f"{name}: fields {widths}, but image {names[0]} has {columns}")
            files["boxes"].write(regions.boxes.numpy().astype("<f4").tobytes())
            stored = {key: _cast(value.numpy(), dtype, f"{name}: {key}") for key, value in found.items()}
            for key, values in stored.items():
                files[key].write(values.tobytes())
            if "mean" in widths:
                mean = torch.from_numpy(stored["features"].astype(np.float32)).mean(0)
                files["mean"].write(mean.numpy().astype("<f4").tobytes())
            offsets.append(offsets[-1] + len(regions.boxes))
            sizes.append((regions.width or 0, regions.height or 0))
    finally:
        for file in files.values():
            file.close()
    return offsets, sizes, columns


def _cast(values: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
    limit = np.finfo(dtype).max
    if np.abs(values).max() > limit:
        raise RegionError(f"{what} goes up to {np.abs(values).max():g}, beyond {dtype.name} ({limit:g})")
    return values.astype(dtype)


@contextmanager
def _new_folder(target: str | Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `target`, renamed to it if the block succeeds and removed otherwise."""
    target = Path(target)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; remove it first")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(target, ignore_errors=True)  # a folder cannot be replaced in one step as a file can
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# Validation


def check(
    store: RegionStore,
    expected_ids: Iterable[str | int] | None = None,
    expected_sizes: Mapping[str, tuple[int, int]] | None = None,
) -> list[Problem]:
    """Reads every image and lists what is wrong: missing, damaged, not finite, boxes outside, wrong image size.

    expected_ids: images that must be there (default: those of expected_sizes, or what the store has).
    expected_sizes: width and height by image name.
    """
    sizes = expected_sizes or {}
    if expected_ids is None:
        expected_ids = list(sizes) or store.names()
    problems = []
    for name in map(str, expected_ids):
        try:
            messages = _faults(store.regions(name), sizes.get(name))
        except FileNotFoundError:
            messages = ["missing"]
        except RegionError as error:
            messages = [str(error)]
        problems += [Problem(name, message) for message in messages]
    return problems


def _faults(regions: Regions, size: tuple[int, int] | None) -> list[str]:
    messages = []
    for key in ("boxes", *_OPTIONAL):
        tensor = getattr(regions, key)
        if tensor is not None and not torch.isfinite(tensor).all():
            messages.append(f"{key} has {int((~torch.isfinite(tensor)).sum())} values that are not finite")
    stored = (regions.width, regions.height)
    if size is not None and None not in stored and stored != tuple(size):
        messages.append(f"image size {stored} in the file, expected {tuple(size)}")
    x1, y1, x2, y2 = regions.boxes.unbind(1)
    # By a pixel at most: x + w - 1 of an annotation thinner than a pixel.
    if bool(((x2 < x1 - 1) | (y2 < y1 - 1)).any()):
        messages.append("a box ends before it starts")
    width, height = size or stored
    # Up to the full width, not width - 1: detectors clip in their own frame, which may be larger (spec 12 §3).
    if width and height and bool(((x1 < 0) | (y1 < 0) | (x2 > width) | (y2 > height)).any()):
        messages.append(f"a box lies outside the {width} x {height} image")
    # Rows further than 0.1 from 1 silently lose their region target in pretraining (spec 12, D-10).
    if regions.class_scores is not None and bool(((regions.class_scores.sum(1) - 1).abs() >= 0.1).any()):
        messages.append("class scores of a box do not sum to 1")
    return messages

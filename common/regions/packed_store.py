"""Regions of many images in a few flat files, which are mapped into memory.

A read touches only the bytes of its image. Features stay lazy (see `common.regions.lazy_features`).

    <name>.packed/  meta.json               format, dtype, counts, widths, origin
                    names.npy               bytes [N], sorted, searched by bisection
                    order.npy               int64 [N]: the name at i is that of image order[i]; absent: of image i
                    offsets.npy             int64 [N + 1]: image i has rows offsets[i] .. offsets[i + 1] - 1
                    sizes.npy               int32 [N, 2] width, height; 0 where unknown
                    boxes.bin               float32 [rows, 4]
                    features.bin            dtype [rows, 2048]
                    image_features.bin      dtype [N, 2048]
                    mean_features.bin       float32 [N, 2048], the mean of the features of each image
                    class_scores.bin        dtype [rows, classes]
                    attribute_scores.bin    dtype [rows, attributes]

The last five are optional. The means are there where features are and image features are not. A store with order.npy
has format 2, because a program that knows format 1 alone would read other images from it.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from common.errors import DataError, RegionError
from common.files.atomic import new_folder
from common.files.json_files import read_json
from common.regions.arguments import DTYPES
from common.regions.lazy_features import FeatureFile, LazyFeatures, read_features
from common.regions.regions import Regions, RegionStore, check_finite_boxes, check_shapes

FORMAT = 1
ORDERED_FORMAT = 2  # with order.npy
_FILES = {
    "boxes": "boxes.bin",
    "features": "features.bin",
    "image_feature": "image_features.bin",
    "class_scores": "class_scores.bin",
    "attribute_scores": "attribute_scores.bin",
    "mean": "mean_features.bin",
}
_PER_IMAGE = ("image_feature", "mean")
_FLOAT32 = ("boxes", "mean")
_LAZY = ("features", "mean")


class PackedRegions(RegionStore):
    """A packed store (layout: top of this file), mapped into memory at the first read of each process.

    Raises RegionError if a file's length disagrees with the index.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.meta = _read_meta(Path(path) / "meta.json")
        if self.meta["format"] not in (FORMAT, ORDERED_FORMAT):
            raise RegionError(
                f"{path}: packed format {self.meta['format']}, this program reads {FORMAT} and {ORDERED_FORMAT}"
            )
        for key, shape in self._shapes().items():
            file = Path(path) / _FILES[key]
            wanted = shape[0] * shape[1] * np.dtype(self._dtype(key)).itemsize
            if (found := file.stat().st_size if file.exists() else 0) != wanted:
                raise RegionError(f"{file}: {found} bytes, the index says {wanted}")
        self._lazy = {
            key: FeatureFile.open(Path(path) / _FILES[key], self._dtype(key), self._shapes()[key])
            for key in _LAZY
            if key in self._shapes()
        }

    def regions(self, name: str | int, with_features: bool = True) -> Regions:
        image = self._find(name)
        if image is None:
            raise FileNotFoundError(f"{self.path}: no regions of image {name}")
        start, stop = self._maps["offsets"][image : image + 2].tolist()
        width, height = (int(side) or None for side in self._maps["sizes"][image])
        regions = Regions(
            boxes=self._read("boxes", slice(start, stop)),
            class_scores=self._read_optional("class_scores", slice(start, stop)),
            attribute_scores=self._read_optional("attribute_scores", slice(start, stop)),
            width=width,
            height=height,
        )
        check_finite_boxes(regions.boxes, f"{self.path}: {name}")
        if with_features:
            if "features" in self._lazy:
                regions.features = LazyFeatures(
                    self._lazy["features"], start, stop, means=self._lazy.get("mean"), image=image
                )
            regions.image_feature = self._read_optional("image_feature", image)
        return regions

    def names(self) -> list[str]:
        return [name.decode() for name in self._maps["names"]]

    def __contains__(self, name: str | int) -> bool:
        return self._find(name) is not None

    def __getstate__(self) -> dict[str, Any]:
        # Without the memory maps: pickling one would copy the whole file. The other process maps the files itself.
        return {key: value for key, value in self.__dict__.items() if key != "_maps"}

    @cached_property
    def _maps(self) -> dict[str, np.ndarray]:
        folder = Path(self.path)
        names = ["names", "offsets", "sizes"] + ["order"] * (self.meta["format"] == ORDERED_FORMAT)
        # As plain arrays: each part of a memmap is made a memmap too, which makes indexing slow.
        maps = {key: _load_index(folder / f"{key}.npy") for key in names}
        _check_index(maps, self.meta["count"], self.meta["rows"], folder)
        for key, shape in self._shapes().items():
            if key not in _LAZY:  # LazyFeatures map those files
                dtype = np.dtype(self._dtype(key)).newbyteorder("<")
                maps[key] = np.memmap(folder / _FILES[key], dtype, "r", shape=shape).view(np.ndarray)
        return maps

    def _shapes(self) -> dict[str, tuple[int, int]]:
        count, rows, columns = self.meta["count"], self.meta["rows"], self.meta["columns"]
        return {key: (count if key in _PER_IMAGE else rows, width) for key, width in columns.items()}

    def _dtype(self, key: str) -> str:
        return "float32" if key in _FLOAT32 else self.meta["dtype"]

    def _find(self, name: str | int) -> int | None:
        names, key = self._maps["names"], str(name).encode()
        if len(key) > names.itemsize:
            return None  # numpy would widen (copy) all names to compare them
        place = int(np.searchsorted(names, np.bytes_(key)))
        if place == len(names) or names[place] != key:
            return None
        return int(self._maps["order"][place]) if "order" in self._maps else place

    def _read(self, key: str, rows: slice | int) -> Tensor:
        """float32 copy of some rows of a file."""
        return torch.from_numpy(np.array(self._maps[key][rows], dtype=np.float32))

    def _read_optional(self, key: str, rows: slice | int) -> Tensor | None:
        return self._read(key, rows) if key in self._maps else None


def pack(
    source: RegionStore,
    out: str | Path,
    dtype: str = "float32",
    info: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> PackedRegions:
    """Writes all images of `source` as a packed store, which appears under its name when it is complete.

    out: a folder ending in `.packed`. dtype: "float32" (exact) or "float16", of features and scores; boxes stay
    float32. info: kept in meta.json. overwrite: replace a store that exists.
    Raises RegionError naming an image that is damaged, lacks the first one's fields or does not fit into float16;
    FileExistsError if `out` exists.
    """
    names = sorted(source.names(), key=str.encode)
    if not names:
        raise RegionError(f"{source.path}: nothing to pack")
    with packed_writer(out, dtype, info, overwrite) as writer:
        for name in names:
            writer.add(name, source.regions(name).in_memory())
    return PackedRegions(out)


@contextmanager
def packed_writer(
    out: str | Path, dtype: str = "float32", info: Mapping[str, Any] | None = None, overwrite: bool = False
) -> Iterator[PackedWriter]:
    """Opens a writer of a packed store, which appears under its name if the block succeeds. Nothing is left otherwise.

    out, dtype, info, overwrite: as in `pack`. Raises FileExistsError if `out` exists, RegionError if no image was
    added, and OSError naming the file that could not be written (a full disk).
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES}, got {dtype!r}")
    if not str(out).endswith(".packed"):
        raise ValueError(f"a packed store's name ends in .packed, got {out}")
    with new_folder(out, overwrite) as folder:
        writer = PackedWriter(folder, dtype)
        try:
            yield writer
            if not writer.count:
                raise RegionError(f"{out}: nothing to pack")
        finally:
            writer.close()
        writer.write_index(dict(info or {}))


class PackedWriter:
    """Writes a packed store into an empty folder, image by image in any order of names. `packed_writer` opens one.

    Images are appended to the files as they come. Memory holds their names and places alone.
    """

    def __init__(self, folder: Path, dtype: str) -> None:
        self.folder, self.dtype = folder, dtype
        self._names: dict[str, None] = {}
        self._offsets, self._sizes = array("q", [0]), array("i")
        self._columns: dict[str, int] = {"boxes": 4}
        self._files: dict[str, BinaryIO] = {}

    @property
    def count(self) -> int:
        """The number of images so far."""
        return len(self._names)

    @property
    def rows(self) -> int:
        """The number of boxes so far."""
        return self._offsets[-1]

    @property
    def columns(self) -> dict[str, int]:
        """The width of the rows of each file, by field of `Regions`; "mean" is that of mean_features.bin."""
        return dict(self._columns)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def add(self, name: str, regions: Regions) -> None:
        """Appends one image. name: of its regions. regions: with features in memory.

        Raises RegionError naming the image if it was added before, has values that are not finite, lacks the fields of
        the first one or does not fit into float16.
        """
        if name in self:
            raise RegionError(f"{name}: two images have this name")
        arrays = _stored_arrays(regions, name, self.dtype)
        widths = {key: values.shape[-1] for key, values in arrays.items()}
        if not self._files:
            self._columns = widths
            self._files = {key: (self.folder / _FILES[key]).open("wb") for key in widths}
        if widths != self._columns:
            raise RegionError(f"{name}: fields {widths}, but image {next(iter(self._names))} has {self._columns}")
        for key, values in arrays.items():
            with _named_errors(self.folder / _FILES[key]):
                self._files[key].write(values.data)
        self._names[name] = None
        self._offsets.append(self.rows + len(regions.boxes))
        self._sizes.extend((regions.width or 0, regions.height or 0))

    def close(self) -> None:
        """Closes the files of the images. Raises OSError naming the file that could not be written."""
        files, self._files = self._files, {}
        try:
            for key, file in files.items():
                with _named_errors(self.folder / _FILES[key]):
                    file.flush()
        finally:
            for file in files.values():
                with suppress(OSError):  # the error of flush() above is on its way
                    file.close()

    def write_index(self, info: dict[str, Any]) -> None:
        """Writes the index files and meta.json. info: kept there."""
        stored = np.array([name.encode() for name in self._names])
        order = np.argsort(stored, kind="stable")
        ordered = bool((order != np.arange(len(order))).any())
        index = {
            "names": stored[order],
            "offsets": np.array(self._offsets, dtype=np.int64),
            "sizes": np.array(self._sizes, dtype=np.int32).reshape(-1, 2),
        }
        if ordered:
            index["order"] = order.astype(np.int64)
        for key, values in index.items():
            with _named_errors(self.folder / f"{key}.npy"):
                np.save(self.folder / f"{key}.npy", values)
        meta = {
            "format": ORDERED_FORMAT if ordered else FORMAT,
            "dtype": self.dtype,
            "count": self.count,
            "rows": self.rows,
            "columns": self._columns,
            "info": info,
        }
        with _named_errors(self.folder / "meta.json"):
            (self.folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _read_meta(path: Path) -> dict[str, Any]:
    """Returns the content of meta.json. Raises RegionError unless it has the keys that a store needs."""
    try:
        meta = read_json(path)
    except DataError as error:
        raise RegionError(str(error)) from error
    numbers = ("format", "count", "rows")
    if (
        not isinstance(meta, dict)
        or not all(type(meta.get(key)) is int and meta[key] >= 0 for key in numbers)
        or meta.get("dtype") not in DTYPES
        or not isinstance(meta.get("columns"), dict)
        or not all(key in _FILES and type(width) is int and width > 0 for key, width in meta["columns"].items())
    ):
        raise RegionError(f"{path}: expected the numbers {', '.join(numbers)}, a dtype and the columns of files")
    return meta


def _load_index(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:
        raise RegionError(f"{path}: damaged: {type(error).__name__}") from error


def _check_index(maps: dict[str, np.ndarray], count: int, rows: int, folder: Path) -> None:
    """Raises RegionError unless names, places and sizes are those of `count` images with `rows` boxes."""
    expected = {"names": (count,), "offsets": (count + 1,), "sizes": (count, 2), "order": (count,)}
    for key, values in maps.items():
        kind = "S" if key == "names" else "i"
        if values.shape != expected[key] or values.dtype.kind != kind:
            raise RegionError(
                f"{folder / key}.npy: {values.dtype} {list(values.shape)}, expected {list(expected[key])}"
            )
    offsets, order = maps["offsets"], maps.get("order")
    if offsets[0] != 0 or offsets[-1] != rows or (np.diff(offsets) < 1).any():
        raise RegionError(f"{folder}/offsets.npy: damaged: expected rising numbers from 0 to {rows}")
    if order is not None and count and (order.min() < 0 or order.max() >= count):
        raise RegionError(f"{folder}/order.npy: damaged: expected numbers from 0 to {count - 1}")


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Adds the file's path to an OSError of the block, which has none where a disk is full."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _stored_arrays(regions: Regions, name: str, dtype: str) -> dict[str, np.ndarray]:
    """The arrays of one image by the key of their file, contiguous. Raises RegionError naming the image."""
    check_shapes(regions, name)
    arrays = {"boxes": _little_endian(regions.boxes, "float32")}
    for key in ("features", "image_feature", "class_scores", "attribute_scores"):
        value: Tensor | None = getattr(regions, key)
        if value is not None:
            _check_range(value.numpy(), dtype, f"{name}: {key}")
            arrays[key] = _little_endian(value, dtype)
    if regions.features is not None and regions.image_feature is None:
        # Stands for the whole image. Of the features as they are stored, so that reading them gives the same mean.
        stored = read_features(regions.features).to(getattr(torch, dtype)).float()
        arrays["mean"] = _little_endian(stored.mean(0), "float32")
    return arrays


def _little_endian(values: Tensor, dtype: str) -> np.ndarray:
    # PyTorch converts to float16 several times as fast as NumPy does, to the same numbers.
    converted = values.to(getattr(torch, dtype)).contiguous().numpy()
    return converted.astype(converted.dtype.newbyteorder("<"), copy=False)


def _check_range(values: np.ndarray, dtype: str, what: str) -> None:
    limit = np.finfo(dtype).max
    low, high = values.min(), values.max()  # NaN if any value is
    if -limit <= low and high <= limit:
        return
    if not np.isfinite(values).all():
        raise RegionError(f"{what} has {int((~np.isfinite(values)).sum())} values that are not finite")
    raise RegionError(f"{what} goes up to {max(-low, high):g}, beyond {dtype} ({limit:g})")

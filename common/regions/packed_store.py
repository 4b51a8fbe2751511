"""Regions of many images in a few flat files, which are mapped into memory.

A read touches only the bytes of its image. Features stay lazy (see `common.regions.lazy_features`).

    <name>.packed/  meta.json               format, dtype, counts, widths, origin
                    names.npy               bytes [N], sorted, searched by bisection
                    offsets.npy             int64 [N + 1]: image i has rows offsets[i] .. offsets[i + 1] - 1
                    sizes.npy               int32 [N, 2] width, height; 0 where unknown
                    boxes.bin               float32 [rows, 4]
                    features.bin            dtype [rows, 2048]
                    image_features.bin      dtype [N, 2048]
                    mean_features.bin       float32 [N, 2048], the mean of the features of each image
                    class_scores.bin        dtype [rows, classes]
                    attribute_scores.bin    dtype [rows, attributes]

The last five are optional. The means are there where features are and image features are not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from common.errors import RegionError
from common.files.atomic import new_folder
from common.regions.arguments import DTYPES
from common.regions.lazy_features import FeatureFile, LazyFeatures
from common.regions.regions import Regions, RegionStore, check_finite_boxes, check_shapes

FORMAT = 1
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
        self.meta: dict[str, Any] = json.loads((Path(path) / "meta.json").read_text())
        if self.meta["format"] != FORMAT:
            raise RegionError(f"{path}: packed format {self.meta['format']}, this program reads {FORMAT}")
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
        names = ("names", "offsets", "sizes")
        # As plain arrays: each part of a memmap is made a memmap too, which makes indexing slow.
        maps = {key: np.load(folder / f"{key}.npy", mmap_mode="r").view(np.ndarray) for key in names}
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
        image = int(np.searchsorted(names, np.bytes_(key)))
        return image if image < len(names) and names[image] == key else None

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
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES}, got {dtype!r}")
    if not str(out).endswith(".packed"):
        raise ValueError(f"a packed store's name ends in .packed, got {out}")
    names = sorted(source.names(), key=str.encode)
    if not names:
        raise RegionError(f"{source.path}: nothing to pack")
    with new_folder(out, overwrite) as folder:
        offsets, sizes, columns = _pack_arrays(source, names, folder, np.dtype(dtype).newbyteorder("<"))
        np.save(folder / "names.npy", np.array([name.encode() for name in names]))
        np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64))
        np.save(folder / "sizes.npy", np.array(sizes, dtype=np.int32))
        meta = {"format": FORMAT, "dtype": dtype, "count": len(names), "rows": offsets[-1], "columns": columns}
        meta["info"] = dict(info or {})
        (folder / "meta.json").write_text(json.dumps(meta, indent=1))
    return PackedRegions(out)


def _pack_arrays(
    source: RegionStore, names: list[str], folder: Path, dtype: np.dtype
) -> tuple[list[int], list[tuple[int, int]], dict[str, int]]:
    """Appends every image to the .bin files. Returns the offsets, the sizes and the width of each file's rows."""
    offsets, sizes, columns = [0], [], {"boxes": 4}
    files: dict[str, BinaryIO] = {}
    try:
        for name in names:
            regions = source.regions(name).in_memory()
            arrays = _stored_arrays(regions, name, dtype)
            widths = {key: array.shape[-1] for key, array in arrays.items()}
            if not files:
                columns = widths
                files = {key: (folder / _FILES[key]).open("wb") for key in widths}
            if widths != columns:
                raise RegionError(f"{name}: fields {widths}, but image {names[0]} has {columns}")
            for key, array in arrays.items():
                files[key].write(array.tobytes())
            offsets.append(offsets[-1] + len(regions.boxes))
            sizes.append((regions.width or 0, regions.height or 0))
    finally:
        for file in files.values():
            file.close()
    return offsets, sizes, columns


def _stored_arrays(regions: Regions, name: str, dtype: np.dtype) -> dict[str, np.ndarray]:
    """The arrays of one image by the key of their file. Raises RegionError naming the image."""
    check_shapes(regions, name)
    arrays = {"boxes": regions.boxes.numpy().astype("<f4")}
    for key in ("features", "image_feature", "class_scores", "attribute_scores"):
        if (value := getattr(regions, key)) is not None:
            arrays[key] = _cast(value.numpy(), dtype, f"{name}: {key}")
    if "features" in arrays and "image_feature" not in arrays:
        # Stands for the whole image. Of the features as they are stored, so that reading them gives the same mean.
        mean = torch.from_numpy(arrays["features"].astype(np.float32)).mean(0)
        arrays["mean"] = mean.numpy().astype("<f4")
    return arrays


def _cast(values: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
    limit = np.finfo(dtype).max
    if np.abs(values).max() > limit:
        raise RegionError(f"{what} goes up to {np.abs(values).max():g}, beyond {dtype.name} ({limit:g})")
    return values.astype(dtype)

"""Regions in the published format: one JSON file an image, in a folder or in a zip archive (original 4.20)."""

from __future__ import annotations

import base64
import binascii
import json
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from common.errors import RegionError
from common.files.archives import exists, list_files, read_bytes
from common.files.atomic import atomic_write, new_folder
from common.regions.lazy_features import read_features
from common.regions.regions import FEATURE_DIM, Regions, RegionStore, check_finite_boxes, check_shapes


class JsonRegions(RegionStore):
    """A folder of JSON files, or a zip of them (members at its root or in a folder of the archive's name)."""

    def regions(self, name: str | int, with_features: bool = True) -> Regions:
        try:
            path = self._file(name)
            return read_region_json(read_bytes(path), path, with_features)
        except BadZipFile as error:
            raise RegionError(str(error)) from error

    def names(self) -> list[str]:
        return sorted(file.removesuffix(".json") for file in list_files(self._folder, (".json",)) if file[0] != ".")

    def __contains__(self, name: str | int) -> bool:
        return exists(self._file(name))

    def _file(self, name: str | int) -> str:
        return f"{self._folder}/{name}.json"

    @cached_property
    def _folder(self) -> str:
        if not self.path.endswith(".zip"):
            return self.path
        inner = f"{self.path}@/{Path(self.path).stem}"
        # COCO's archives hold a folder (original 9.5), those of Conceptual Captions do not (original 7.2).
        return inner if list_files(inner, (".json",)) else f"{self.path}@"


def read_region_json(data: bytes, name: str, with_features: bool = True) -> Regions:
    """Parses one JSON file. The tensors own their memory, so they can be written to.

    name: of the file, for errors. with_features: False leaves features and image_feature undecoded (None).
    Raises RegionError naming the file, the key and the lengths that disagree, and for boxes that are not finite.
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
    check_finite_boxes(boxes, name)
    image_feature = _decode(record, "image_box_feature", name, 1, FEATURE_DIM) if with_features else None
    return Regions(
        boxes=boxes,
        features=_decode(record, "features", name, count, FEATURE_DIM) if with_features else None,
        image_feature=None if image_feature is None else image_feature[0],
        class_scores=_decode(record, "classes", name, count, None),
        attribute_scores=_decode(record, "attrs", name, count, None),
        width=record.get("image_w"),
        height=record.get("image_h"),
    )


def write_region_json(regions: Regions, name: str) -> bytes:
    """Returns the JSON of one image, as `read_region_json` reads it. name: the file's stem, the image id.

    Raises RegionError for fields of a wrong shape.
    """
    check_shapes(regions, name)
    record: dict[str, Any] = {"image_id": int(name) if name.isdecimal() else name, "num_boxes": len(regions.boxes)}
    if regions.width is not None and regions.height is not None:
        record |= {"image_w": regions.width, "image_h": regions.height}
    record["boxes"] = _encode(regions.boxes)
    for key, tensor in (
        ("features", None if regions.features is None else read_features(regions.features)),
        ("image_box_feature", regions.image_feature),
        ("classes", regions.class_scores),
        ("attrs", regions.attribute_scores),
    ):
        if tensor is not None:
            record[key] = _encode(tensor)
    return json.dumps(record).encode()


def save_regions(folder: str | Path, name: str, regions: Regions) -> None:
    """Writes `<folder>/<name>.json`, completely or not at all. Raises RegionError for fields of a wrong shape."""
    # Not synced: a file that a crash cut off is found, and made again when the extraction resumes.
    with atomic_write(Path(folder) / f"{name}.json", sync=False) as f:
        f.write(write_region_json(regions, name))


def unpack(source: RegionStore, folder: str | Path) -> JsonRegions:
    """Writes every image of `source` as `<folder>/<name>.json`. The folder appears when all files are written.

    Raises FileExistsError if the folder exists, RegionError for a name that is no plain file name.
    """
    names = source.names()
    for name in names:
        if name == ".." or PurePath(name).name != name or "\0" in name:
            raise RegionError(f"{source.path}: {name!r:.80} is no name of an image: it would leave the folder {folder}")
    with new_folder(folder) as temporary:
        for name in names:
            save_regions(temporary, name, source.regions(name))
    return JsonRegions(folder)


def _decode(record: dict[str, Any], key: str, name: str, rows: int, columns: int | None) -> Tensor | None:
    """float32 [rows, columns] of a base64 value, None without the key. columns: None for as many as the value has."""
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
    # Always float32: the reader takes the bytes as that, whatever dtype the tensor had (original 7.9).
    return base64.b64encode(tensor.detach().cpu().numpy().astype("<f4").tobytes()).decode()

"""The name of an image in region stores and box sources.

A file with a name of COCO ("COCO_train2014_000000000009.jpg", "000000000009.jpg") has the image id as its name, "9".
Every other file has its stem. Published region files have these names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath, PurePosixPath
from typing import Protocol

from common.errors import RegionError

_COCO = re.compile(r"(?:COCO_[a-z]+[0-9]{4}_)?([0-9]{12})", re.IGNORECASE)


class Names(Protocol):
    """A region store, or a mapping by name."""

    def __contains__(self, name: str, /) -> bool: ...


def file_stem(image_file: str | PurePath) -> str:
    """Returns the file name without folders and without its ending."""
    return PurePosixPath(image_file).stem


def region_name(image_file: str | PurePath) -> str:
    """Returns the name of an image. image_file: path or file name, with its ending."""
    return name_of_stem(file_stem(image_file))


def name_of_stem(stem: str) -> str:
    """Returns the name of an image from its stem, or from the id that a file of features gives it."""
    match = _COCO.fullmatch(stem)
    return str(int(match[1])) if match else stem


def stored_name(names: Names, image_file: str | PurePath, name: str | None = None) -> str:
    """Returns the name that an image has in a store or a source.

    The candidates are, in this order: `name`, `region_name(image_file)`, and the stem, under which older stores have
    images of COCO. Returns the first candidate if `names` has none, so that the error of the store shows this name.
    """
    candidates = [region_name(image_file), file_stem(image_file)]
    if name is not None:
        candidates.insert(0, name)
    return next((candidate for candidate in candidates if candidate in names), candidates[0])


def unique_names(image_files: Iterable[str], where: str) -> dict[str, str]:
    """Returns the image files by name, in their order. Equal files are one.

    where: folder or file that lists them, for the error. Raises RegionError for two files of one name.
    """
    files: dict[str, str] = {}
    for file in image_files:
        name = region_name(file)
        check_same_file(files.setdefault(name, file), file, where)
    return files


def check_same_file(one: str, other: str, where: str) -> None:
    """Raises RegionError unless two image files of one name are the same file. where: what lists them."""
    if one != other:
        raise RegionError(
            f"{where}: {one} and {other} both have the name {region_name(one)!r}, but regions are stored by name; "
            "rename one of the files"
        )

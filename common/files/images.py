"""Files and images from folders and from zip archives.

A path is an ordinary one or "<archive>.zip@/<member>" (spec 04 §5).
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from zipfile import BadZipFile, ZipFile

from PIL import Image, ImageOps

from common.errors import ImageError

if TYPE_CHECKING:  # nothing that reads images alone has to wait for torch
    from torch import Tensor

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_MARK = ".zip@"
_MAX_OPEN_ARCHIVES = 16

# What Pillow raises on damaged data: it has no error class of its own for that.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_bytes(path: str | Path) -> bytes:
    """The content of a file or of an archive's member.

    Raises FileNotFoundError naming the path, or the archive and the member; BadZipFile for a damaged archive or member.
    """
    archive_path, member = _split(path)
    if member is None:
        return Path(archive_path).read_bytes()
    try:
        return _open_archive(archive_path, os.getpid()).read(member)
    except KeyError:
        raise FileNotFoundError(f"{archive_path} has no member {member!r}") from None
    except (BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise BadZipFile(f"{archive_path}, member {member!r}: {error}") from error


def exists(path: str | Path) -> bool:
    """Whether `read_bytes(path)` would find something; a damaged archive has no members."""
    archive_path, member = _split(path)
    if member is None:
        return Path(archive_path).is_file()
    try:
        return member in _open_archive(archive_path, os.getpid()).NameToInfo
    except (FileNotFoundError, BadZipFile):
        return False


def unpacked(path: str) -> str:
    """ "train_image.zip@/x.jpg" where it lies in a folder: "train_image/x.jpg"."""
    return path.replace(_MARK, "")


def split_region_path(path: str, zip_mode: bool) -> tuple[str, str]:
    """The region store of a detector's file and its name there: "train_frcnn.zip@/0.json" -> "train_frcnn", "0".

    With zip mode the store is the archive, "train_frcnn.zip". Archives of the training set came in parts, whose folder
    is one: "train_frcnn.0.zip" -> "train_frcnn" (spec 10 P-21).
    """
    folder, mark, member = path.partition(_MARK)
    if mark:
        folder = f"{folder}.zip" if zip_mode else re.sub(r"\.[0-3]$", "", folder)
    else:
        folder, member = str(PurePosixPath(path).parent), PurePosixPath(path).name
    return folder, member.strip("/").removesuffix(".json")


def list_files(folder: str | Path, suffixes: tuple[str, ...]) -> list[str]:
    """Sorted names of the files directly in `folder` (for an archive also "<archive>.zip@/") with one of the lower-case
    `suffixes`.

    Raises FileNotFoundError if the folder or the archive does not exist.
    """
    archive_path, member = _split(folder)
    if member is None:
        names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
    else:
        prefix = f"{member}/" if member else ""
        members = _open_archive(archive_path, os.getpid()).NameToInfo
        names = [m[len(prefix) :] for m in members if m.startswith(prefix) and "/" not in m[len(prefix) :]]
    return sorted(name for name in names if name.lower().endswith(suffixes))


def load_image(path: str | Path, upright: bool = False) -> Image.Image:
    """The decoded image as RGB, whatever its mode on disk; of an animation the first frame.

    upright: turned by its EXIF orientation. The images of data sets are not: annotated boxes are in the frame of the
    stored pixels (spec 12, D-5).
    Raises FileNotFoundError as `read_bytes` does, and ImageError for a file that cannot be decoded.
    """
    try:
        data = read_bytes(path)
    except BadZipFile as error:
        raise ImageError(f"unreadable image: {error}") from error
    return decode_image(data, str(path), upright)


def decode_image(data: bytes, what: str, upright: bool = False) -> Image.Image:
    """`load_image` of a file's content. what: what errors call it."""
    try:
        image = Image.open(io.BytesIO(data))
        return (ImageOps.exif_transpose(image) if upright else image).convert("RGB")
    except _DECODE_ERRORS as error:
        raise ImageError(f"unreadable image {what} ({len(data)} bytes): {error}") from error


@dataclass
class SharedImage:
    """An image, and its transformed pixels so far, by whether they are mirrored: `known` of a Transform."""

    image: Image.Image
    pixels: dict[bool, Tensor] = field(default_factory=dict)


class ImageReader:
    """Reads images; while they are kept, each file once."""

    def __init__(self) -> None:
        self._kept: dict[str, SharedImage] | None = None

    def read(self, path: str) -> SharedImage:
        """The RGB image of `load_image`; raises what that raises."""
        if self._kept is None:
            return SharedImage(load_image(path))
        if path not in self._kept:
            self._kept[path] = SharedImage(load_image(path))
        return self._kept[path]

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Images read inside are kept to the end of the block."""
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None


def _split(path: str | Path) -> tuple[str, str | None]:
    """(archive, member) of an archive path, (path, None) of any other."""
    text = str(path)
    at = text.find(_MARK)
    if at < 0:
        return text, None
    end = at + len(_MARK)
    return text[: end - 1], text[end:].strip("/")


@lru_cache(maxsize=_MAX_OPEN_ARCHIVES)
def _open_archive(path: str, pid: int) -> ZipFile:
    """`pid` keeps a forked worker off its parent's handle, whose file offset both would move (spec 04 §12.12)."""
    try:
        return ZipFile(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"no archive {path}") from None
    except BadZipFile as error:
        raise BadZipFile(f"{path}: {error}") from error

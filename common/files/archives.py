"""Files in folders and in zip archives.

A path names a file ("images/1.jpg") or a member of an archive ("images.zip@/1.jpg").
"""

from __future__ import annotations

import os
import re
import zlib
from functools import lru_cache
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile

_MARK = ".zip@"
_MAX_OPEN_ARCHIVES = 16


def read_bytes(path: str | Path) -> bytes:
    """Returns the content of a file or of an archive's member.

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
    """Returns whether the file or member exists. A damaged archive has no members."""
    archive_path, member = _split(path)
    if member is None:
        return Path(archive_path).is_file()
    try:
        return member in _open_archive(archive_path, os.getpid()).NameToInfo
    except (FileNotFoundError, BadZipFile):
        return False


def list_files(folder: str | Path, suffixes: tuple[str, ...]) -> list[str]:
    """Returns the sorted names of the files directly in a folder that end in one of the lower-case `suffixes`.

    folder: of the file system or of an archive; "<archive>.zip@/" is the archive's root.
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


def unpacked(path: str) -> str:
    """Returns the path that an archive's member has once the archive is unpacked.

    "train_image.zip@/x.jpg" becomes "train_image/x.jpg".
    """
    return path.replace(_MARK, "")


def split_region_path(path: str, zip_mode: bool) -> tuple[str, str]:
    """Returns the region store of a detector's file and the file's name there.

    "train_frcnn.zip@/0.json" becomes "train_frcnn", "0". With `zip_mode` the store is the archive, "train_frcnn.zip".
    The training set's archives came in parts that unpack into one folder: "train_frcnn.0.zip" becomes "train_frcnn"
    (original 5.5).
    """
    folder, mark, member = path.partition(_MARK)
    if mark:
        folder = f"{folder}.zip" if zip_mode else re.sub(r"\.[0-3]$", "", folder)
    else:
        folder, member = str(PurePosixPath(path).parent), PurePosixPath(path).name
    return folder, member.strip("/").removesuffix(".json")


def _split(path: str | Path) -> tuple[str, str | None]:
    """Returns (archive, member) of an archive path, (path, None) of any other."""
    text = str(path)
    at = text.find(_MARK)
    if at < 0:
        return text, None
    end = at + len(_MARK)
    return text[: end - 1], text[end:].strip("/")


@lru_cache(maxsize=_MAX_OPEN_ARCHIVES)
def _open_archive(path: str, pid: int) -> ZipFile:
    """`pid` gives a forked worker its own handle. A handle shared with the parent has one file offset for both."""
    try:
        return ZipFile(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"no archive {path}") from None
    except BadZipFile as error:
        raise BadZipFile(f"{path}: {error}") from error

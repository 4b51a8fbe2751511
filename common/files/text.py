"""Text files. UTF-8, with or without a byte order mark; anything else is an error that names the file and the byte."""

from __future__ import annotations

from pathlib import Path

from common.errors import DataError

BOM = b"\xef\xbb\xbf"
START = 512  # bytes that `kind_of` needs
ZIP = "a zip archive"
# What people find in the place of a data file: how the file starts, and what it is.
_KINDS = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"version https://git-lfs.github.com/", "a git-lfs pointer, not the file itself (`git lfs pull` fetches it)"),
    (b"pk\x03\x04", ZIP),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
)


def kind_of(start: bytes) -> str:
    """Returns what a file is that starts so and is no plain UTF-8 text: "an HTML page", ...; "" for all others."""
    lowered = start[:START].removeprefix(BOM).lstrip().lower()
    return next((kind for begin, kind in _KINDS if lowered.startswith(begin)), "")


def decode_text(data: bytes, path: Path | str, what: str = "UTF-8 text") -> str:
    """Returns the content of a text file without a byte order mark.

    path, what: the file and what was expected in it, for errors. Raises DataError for anything but UTF-8 text.
    """
    if kind := kind_of(data):
        raise DataError(f"{path}: this is {kind}; expected {what}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is no UTF-8 ({error.reason}); expected {what}") from error


def read_text(path: Path | str, what: str = "UTF-8 text") -> str:
    """Returns the content of a text file. Line ends stay as they are.

    Raises as `decode_text` does, and FileNotFoundError.
    """
    return decode_text(Path(path).read_bytes(), path, what)

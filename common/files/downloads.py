"""Files that a browser or git saved in the place of a weight file."""

from __future__ import annotations

from pathlib import Path

from common.errors import CheckpointError

_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")


def check_download(path: Path | str) -> None:
    """Raises CheckpointError for an empty file, a web page and a git-lfs pointer, FileNotFoundError for no file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights {path}: no such file")
    with open(path, "rb") as f:
        head = f.read(512)
    if not head:
        raise CheckpointError(f"weights {path}: byte 0: the file is empty; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"weights {path}: byte 0: a git-lfs pointer, not the file itself; run `git lfs pull`")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        raise CheckpointError(f"weights {path}: byte 0: a web page, not a weight file; download the file itself")

"""Tables of captions and image addresses, and the words of a caption (original 7.1)."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TableLine:
    """One line of a table. number: from 0, malformed lines included. It is the permanent id of the image.

    fault: the error in a malformed line, whose caption and url are empty. "" for a good line.
    """

    number: int
    caption: str = ""
    url: str = ""
    fault: str = ""

    @property
    def name(self) -> str:
        return image_name(self.number)

    @property
    def words(self) -> list[str]:
        """The words of the caption. The tables have tokenised captions, and training joins the words with single
        spaces."""
        return self.caption.split(" ")


def image_name(number: int) -> str:
    return f"{number:08d}"


def read_table(path: str | Path) -> Iterator[TableLine]:
    """Yields the lines `caption TAB address` of a UTF-8 file, the last one with or without a line end (original 7.5).

    Raises FileNotFoundError.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"table {path}: no such file")
    with open(path, "rb") as lines:  # bytes: in text mode, characters in a caption would split a line
        for number, line in enumerate(lines):
            if number == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield _parse(number, line.removesuffix(b"\n").removesuffix(b"\r"))


def count_rows(path: str | Path) -> int:
    with open(path, "rb") as lines:
        return sum(1 for _ in lines)


def _parse(number: int, line: bytes) -> TableLine:
    try:
        columns = line.decode("utf-8").split("\t")
    except UnicodeDecodeError as error:
        return TableLine(number, fault=f"no UTF-8 text: {error.reason} at byte {error.start}")
    if len(columns) != 2:
        return TableLine(number, fault=f"{len(columns)} columns, expected 2: caption TAB address")
    caption, url = columns
    if not caption.strip() or not url.strip():
        return TableLine(number, fault=f"no {'caption' if url.strip() else 'address'}")
    return TableLine(number, caption, url.strip())


def split_words(caption: str) -> list[str]:
    """ "A dog, running" -> ["a", "dog", ",", "running"]: lower case and separate punctuation, as in the tables."""
    apart = (f" {c} " if unicodedata.category(c).startswith("P") else c for c in caption.lower())
    return "".join(apart).split()

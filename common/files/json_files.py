"""JSON files of data sets, with errors that say which file and where it breaks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from common.errors import DataError

_SPACE = re.compile(r"\s*")
_ENDS = tuple(", \t\r\n:]}")  # what may follow a value


def read_json(path: Path | str, what: str = "file") -> Any:
    """The content of a JSON file. what: what a missing one is called.

    Raises FileNotFoundError for a missing file, DataError naming the line where it is no JSON or no text.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{what} {path}: no such file")
    with open(path, encoding="utf-8") as f:
        try:
            return json.load(f)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: not valid JSON at line {error.lineno}: {error.msg}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not a text file: {error}") from error


def iter_list(path: Path | str, key: str, what: str = "file") -> Iterator[Any]:
    """The elements of the list under a top-level key of a JSON file, one at a time and without the rest of the file in
    memory: annotation files have hundreds of megabytes.

    Raises as `read_json` does, and DataError when there is no such list. Where the file breaks after some elements,
    those have been given.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{what} {path}: no such file")
    found = False
    with open(path, encoding="utf-8") as f:
        stream = _Stream(f, path)
        try:
            if stream.peek() != "{":
                stream.value()
            elif stream.take("{") and stream.peek() != "}":
                more = True
                while more:
                    name = stream.value()
                    stream.take(":")
                    if stream.peek() == "[":
                        found = found or name == key
                        for element in stream.elements():
                            if name == key:
                                yield element
                    else:
                        stream.value()
                    more = stream.peek() == "," and stream.take(",")
                stream.take("}")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not a text file: {error}") from error
    if not found:
        raise DataError(f"{path}: expected an object with a list {key!r}")


class _Stream:
    """JSON values from a text file, of which only a part is in memory."""

    CHUNK = 1 << 20  # characters

    def __init__(self, file: TextIO, path: Path) -> None:
        self.file, self.path = file, path
        self.buffer, self.at, self.line = "", 0, 1  # line: of the buffer's first character
        self.decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            self.at = _SPACE.match(self.buffer, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.buffer) or not self._more():
                return self.buffer[self.at : self.at + 1]

    def take(self, character: str) -> bool:
        if self.peek() != character:
            self._fail(self.at, f"Expecting {character!r}")
        self.at += 1
        return True

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:  # perhaps it only goes on behind the end of the buffer
                if not self._more():
                    self._fail(self.at if error.pos < self.at else error.pos, error.msg)
                continue
            if self.buffer[end : end + 1] not in _ENDS and self._more():  # so does a number: 1 of 1.5
                continue
            self.at = end
            return value

    def elements(self) -> Iterator[Any]:
        self.take("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield self.value()
            if self.peek() == "]":
                self.at += 1
                return
            self.take(",")

    def _more(self) -> bool:
        """Drop what was read and add at least as much as is left, so that long values cost no more than twice."""
        read = self.file.read(max(self.CHUNK, len(self.buffer) - self.at))
        if not read:
            return False
        self.line += self.buffer.count("\n", 0, self.at)
        self.buffer, self.at = self.buffer[self.at :] + read, 0
        return True

    def _fail(self, position: int, message: str) -> NoReturn:
        line = self.line + self.buffer.count("\n", 0, position)
        raise DataError(f"{self.path}: not valid JSON at line {line}: {message}")


def parse_object(line: str, where: str) -> dict[str, Any]:
    """The object on a line of a JSON-lines file. where: what errors begin with. Raises DataError for anything else."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(row).__name__}")
    return row


def list_under(content: Any, key: str, path: Path | str) -> list[Any]:
    """The list under a top-level key of a file's content. Raises DataError naming the file when there is none."""
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise DataError(f"{path}: expected an object with a list {key!r}")
    return content[key]

"""JSON files of data sets. Errors name the file and the place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from common.errors import DataError
from common.files.text import START, decode_text, kind_of


def read_json(path: Path | str, what: str = "file") -> Any:
    """Returns the content of a JSON file. what: the name of the file in the error about a missing one.

    Raises FileNotFoundError for a missing file. Raises DataError with the line number where the file is not valid JSON,
    and for a file that is not UTF-8 text.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{what} {path}: no such file")
    return parse_json(path.read_bytes(), path)


def parse_json(data: bytes, path: Path | str) -> Any:
    """Returns the content of a JSON file that was read. Raises DataError as `read_json` does."""
    try:
        return json.loads(decode_text(data, path, "JSON"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON at line {error.lineno}: {error.msg}") from error
    except RecursionError:
        raise DataError(f"{path}: not valid JSON: nested too deeply") from None
    except DataError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise DataError(f"{path}: not valid JSON: {error}") from error


def iter_list(path: Path | str, key: str, what: str = "file") -> Iterator[Any]:
    """Yields the elements of the list under a top-level key of a JSON file one at a time. Annotation files have
    hundreds of megabytes: the rest of the file is never in memory.

    Raises as `read_json` does, with the text around an error and no line number, and DataError when there is no
    such list. The elements before an error are yielded. NaN and integers outside of 64 bits are errors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{what} {path}: no such file")
    empty = True
    with open(path, "rb") as f:
        if kind := kind_of(f.read(START)):
            raise DataError(f"{path}: this is {kind}; expected JSON")
        f.seek(0)
        try:
            for element in ijson.items(f, f"{key}.item", use_float=True):
                empty = False
                yield element
            if empty and not _has_list(f, key):
                raise DataError(f"{path}: expected an object with a list {key!r}")
        except ijson.JSONError as error:
            raise DataError(f"{path}: not valid JSON: {_one_line(error)}") from error


def _has_list(file: BinaryIO, key: str) -> bool:
    """Whether a list stands under a top-level key. `ijson.items` gives nothing for an empty list and for no list."""
    file.seek(0)
    return any((prefix, event) == (key, "start_array") for prefix, event, _ in ijson.parse(file, use_float=True))


def _one_line(error: Exception) -> str:
    """The message of a parser with the text around the error. yajl writes that text in a second line, and an arrow to
    the place in a third."""
    message = error.args[0] if error.args else str(error)
    lines = (message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)).splitlines()
    around = lines[1].strip() if len(lines) > 1 else ""
    return f"{lines[0]}, near {around!r}" if around else lines[0]


def parse_object(line: str, where: str) -> dict[str, Any]:
    """Returns the object on a line of a JSON-lines file. where: the start of error messages, a file and a line.

    Raises DataError for anything but an object.
    """
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error
    except RecursionError:
        raise DataError(f"{where}: nested too deeply") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(row).__name__}")
    return row


def list_under(content: Any, key: str, path: Path | str) -> list[Any]:
    """Returns the list under a top-level key of a file's content. Raises DataError with the path when there is none."""
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise DataError(f"{path}: expected an object with a list {key!r}")
    return content[key]

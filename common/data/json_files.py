"""JSON files of data sets, with errors that say which file and where it breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.data.dataset import DataError


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

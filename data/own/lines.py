"""Records of the user's files: JSON lines, or a CSV with a header. Collects all problems for one report."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError

SHOWN = 50  # problems in a report


@dataclass(frozen=True)
class Line:
    """One record. number: of its line, from 1. fields: the JSON object, or the columns of a CSV that are not empty."""

    file: Path
    number: int
    fields: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.file}, line {self.number}"


class Problems:
    """What is wrong with the input. Collected, so that one report shows all of it."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    def add(self, where: object, message: object) -> None:
        self._messages.append(f"{where}: {message}")

    def check(self) -> None:
        """Raises DataError with the problems that were added, one a line."""
        if self._messages:
            more = len(self._messages) - SHOWN
            raise DataError("\n".join([*self._messages[:SHOWN], *([f"... {more} more"] if more > 0 else [])]))


def read_lines(path: Path, keys: Sequence[str], problems: Problems) -> list[Line]:
    """Returns the records of a file. Blank lines are skipped.

    keys: those that a record may have. Adds a problem for every line that cannot be read and every other key.
    Raises FileNotFoundError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"records {path}: no such file")
    before, lines = len(problems._messages), []
    for line in (_csv_lines if path.suffix.lower() == ".csv" else _json_lines)(path, problems):
        if unknown := [key for key in line.fields if key not in keys]:
            problems.add(line, f"unknown key {', '.join(map(repr, unknown))}; there are: {', '.join(keys)}")
        lines.append(line)
    if not lines and len(problems._messages) == before:
        problems.add(path, "has no records")
    return lines


def _json_lines(path: Path, problems: Problems) -> Iterator[Line]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                fields = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except ValueError as error:  # no JSON, no UTF-8
                problems.add(where, f"no JSON: {error}")
                continue
            if isinstance(fields, dict):
                yield Line(path, number, fields)
            else:
                problems.add(where, f"expected a JSON object, got {fields!r:.80}")


def _csv_lines(path: Path, problems: Problems) -> Iterator[Line]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    problems.add(f"{path}, line {reader.line_num}", f"expected {len(reader.fieldnames or ())} columns")
                    continue
                yield Line(path, reader.line_num, {key: value for key, value in row.items() if value.strip()})
    except (csv.Error, UnicodeDecodeError) as error:
        problems.add(path, f"no CSV: {error}")

"""The table that the VCR leaderboard takes: written, read back, checked, and two halves of it joined
(original 8.21)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError
from common.files.atomic import write_text
from common.files.text import read_text
from vcr.annotations import NUM_CHOICES
from vcr.text import Q2A, QA2R

Q2AR = "Q2AR"
ID_COLUMN = "annot_id"
_ANSWERS = tuple(f"answer_{j}" for j in range(NUM_CHOICES))
_RATIONALES = tuple(f"rationale_conditioned_on_a{i}_{j}" for i in range(NUM_CHOICES) for j in range(NUM_CHOICES))
COLUMNS = {Q2A: _ANSWERS, QA2R: _RATIONALES, Q2AR: _ANSWERS + _RATIONALES}
SUM_TOLERANCE = 1e-3  # how far four probabilities may be from 1 together
_NAMED = 5  # of many ids, how many a message names


@dataclass(frozen=True)
class Row:
    """One annotation. line: in the file, from 1. values: the texts after the id."""

    line: int
    annot_id: str
    values: list[str]


@dataclass(frozen=True)
class Table:
    """A result file. kind: Q2A, QA2R or Q2AR, which its columns tell."""

    kind: str
    rows: list[Row]


def write_table(kind: str, rows: Sequence[Sequence[str]], path: Path) -> None:
    """rows: annotation id, then one text for each of COLUMNS[kind]."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[ID_COLUMN, *COLUMNS[kind]], *rows])
    write_text(path, text.getvalue())


def read_table(path: Path) -> Table:
    """A result file with its numbers as texts. Raises FileNotFoundError, and DataError for other columns or no text."""
    if not path.is_file():
        raise FileNotFoundError(f"result file {path}: no such file")
    try:
        reader = csv.reader(io.StringIO(read_text(path, "a CSV file"), newline=""))
        kind = _kind(next(reader, []), path)
        rows = [Row(reader.line_num, row[0], row[1:]) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}: no text with commas: {error}") from error
    width = len(COLUMNS[kind])
    for row in rows:
        if len(row.values) != width:
            raise DataError(f"{path}, line {row.line}: {len(row.values) + 1} columns, expected {width + 1} ({kind})")
    return Table(kind, rows)


def merge_tables(answers: Path, rationales: Path, out: Path) -> None:
    """Joins a Q2A and a QA2R file by annotation, in the order of the first; the numbers stay as they are written.

    Raises DataError when the files are of other halves or not of the same annotations.
    """
    tables = [read_table(answers), read_table(rationales)]
    for path, table, kind in zip((answers, rationales), tables, (Q2A, QA2R), strict=True):
        if table.kind != kind:
            raise DataError(f"{path}: a {table.kind} table, expected {kind}")
    by_id = {row.annot_id: row.values for row in tables[1].rows}
    problems = list(_id_problems(tables[1].rows, [row.annot_id for row in tables[0].rows]))
    if problems:
        raise DataError(f"{rationales} and {answers} are not of the same annotations: {problems[0]}")
    write_table(Q2AR, [[row.annot_id, *row.values, *by_id[row.annot_id]] for row in tables[0].rows], out)


def find_problems(table: Table, ids: Sequence[str]) -> list[str]:
    """What a leaderboard would refuse, with lines and columns. ids: of the test annotations."""
    return [*_id_problems(table.rows, ids), *_number_problems(table)]


def _kind(header: list[str], path: Path) -> str:
    for kind, columns in COLUMNS.items():
        if header == [ID_COLUMN, *columns]:
            return kind
    # Name what is wrong against the table with the same number of columns, or the most similar one.
    kind = max(COLUMNS, key=lambda k: (len(COLUMNS[k]) + 1 == len(header), len({*COLUMNS[k]} & {*header})))
    wanted = [ID_COLUMN, *COLUMNS[kind]]
    missing, unknown = [c for c in wanted if c not in header], [c for c in header if c not in wanted]
    said = [f"{what} {', '.join(names)}" for what, names in (("without", missing), ("with", unknown)) if names]
    raise DataError(f"{path}, line 1: columns of no VCR table; nearest is {kind}, {'; '.join(said) or 'reordered'}")


def _id_problems(rows: Sequence[Row], ids: Sequence[str]) -> Iterator[str]:
    lines: dict[str, list[int]] = {}
    for row in rows:
        lines.setdefault(row.annot_id, []).append(row.line)
    wanted = set(ids)
    missing = [i for i in ids if i not in lines]
    if missing:
        yield f"{len(missing)} annotations are missing: {_some(missing)}"
    unknown = [f"{i} (line {at[0]})" for i, at in lines.items() if i not in wanted]
    if unknown:
        yield f"{len(unknown)} annotations are unknown: {_some(unknown)}"
    twice = [f"{i} (lines {', '.join(map(str, at[:_NAMED]))})" for i, at in lines.items() if len(at) > 1]
    if twice:
        yield f"{len(twice)} annotations are there more than once: {_some(twice)}"


def _number_problems(table: Table) -> Iterator[str]:
    columns = COLUMNS[table.kind]
    for row in table.rows:
        numbers = [_number(text) for text in row.values]
        for text, number, column in zip(row.values, numbers, columns, strict=True):
            if number is None:
                yield f"line {row.line}, column {column}: {text!r}, expected a probability from 0 to 1"
        for start in range(0, len(columns), NUM_CHOICES):
            four = [n for n in numbers[start : start + NUM_CHOICES] if n is not None]
            if len(four) == NUM_CHOICES and abs(sum(four) - 1) > SUM_TOLERANCE:
                last = columns[start + NUM_CHOICES - 1]
                yield f"line {row.line}, columns {columns[start]} to {last}: the sum is {sum(four):.6g}, expected 1"


def _number(text: str) -> float | None:
    """A probability, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= 1 else None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")

"""Predictions as text: blocks for a reader, JSON lines, a JSON list or CSV. Each answer is written when it is there."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from common.predict.prediction import Prediction

SHOWN_LABELS = 10  # boxes whose labels the text output has
FORMATS = ("text", "json", "csv")
# Ending of an output file -> its format
ENDINGS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".txt": "text"}
COLUMNS = ("id", "image", "rank", "answer", "probability", "mask", "x1", "y1", "x2", "y2", "notes", "error")

Item = Mapping[str, Any]  # one input: "image", the fields of the task, maybe "boxes" and "id"


class AnswerFile:
    """Writes answers to an open file. form: one of FORMATS. as_list: JSON as one list instead of a line for each."""

    def __init__(self, file: TextIO, form: str, as_list: bool = False) -> None:
        self._file, self._form, self._as_list = file, form, as_list
        self._count = 0
        self._csv = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if form == "csv":
            self._csv.writeheader()

    def write(self, item: Item, answer: Prediction | Exception) -> None:
        """item: the input, empty where it could not be read. answer: the error of an input without an answer."""
        if self._form == "csv":
            self._csv.writerows(csv_rows(item, answer))
        elif self._form == "text":
            self._file.write(text_block(item, answer) + "\n")
        elif self._as_list:
            self._file.write((",\n" if self._count else "[\n") + json_object(item, answer))
        else:
            self._file.write(json_object(item, answer) + "\n")
        self._count += 1
        self._file.flush()

    def end(self) -> None:
        """Complete the JSON list."""
        if self._form == "json" and self._as_list:
            self._file.write("\n]\n" if self._count else "[]\n")


def format_of(given: str | None, output: str | None, default: str) -> str:
    """The format of answers: the given one, or that of the ending of the output file."""
    return given or ENDINGS.get(Path(output or "").suffix.lower(), default)


def json_object(item: Item, answer: Prediction | Exception) -> str:
    """The answer as JSON on one line, with the item's "id" and "image". Raises ValueError for NaN in the item."""
    about = {k: item[k] for k in ("id", "image") if k in item}
    if isinstance(answer, Exception):
        return json.dumps({**about, "error": str(answer)}, allow_nan=False)
    return json.dumps({**about, **answer.to_dict()}, allow_nan=False)


def csv_rows(item: Item, answer: Prediction | Exception) -> list[dict[str, Any]]:
    """One row for each answer, by COLUMNS; for an error, and for a prediction without answers, one row.

    rank: from 1; of the answers for one [MASK] where there are several masks, which are counted from 1 too.
    """
    about = {k: item.get(k, "") for k in ("id", "image")}
    if isinstance(answer, Exception):
        return [{**about, "error": str(answer)}]
    rows = []
    ranks: dict[Any, int] = {}
    for a in answer.answers:
        mask = a.get("mask")
        ranks[mask] = ranks.get(mask, 0) + 1
        row = {**about, "rank": ranks[mask], "answer": a["answer"], "probability": a["probability"]}
        row |= {} if mask is None else {"mask": mask + 1}
        row |= dict(zip(("x1", "y1", "x2", "y2"), a.get("box", ()), strict=False))
        rows.append(row)
    rows = rows or [dict(about)]
    rows[0]["notes"] = "; ".join(answer.notes)
    return rows


def text_block(item: Item, answer: Prediction | Exception) -> str:
    """The answer for a reader: a title with the image, and a line for each answer."""
    title = str(item.get("image", "?"))
    if isinstance(answer, Exception):
        return f"{title}\n  ERROR {answer}"
    lines = [title]
    for a in answer.answers:
        mask = f"[MASK] {a['mask'] + 1}: " if "mask" in a else ""
        box = f"  {[round(x, 1) for x in a['box']]}" if "box" in a else ""
        if "box" in a and answer.labels and (label := answer.labels[a["index"]]):
            box += f"  {label}"
        lines.append(f"  {100 * a['probability']:6.2f} %  {mask}{a['answer']}{box}")
    for region in answer.regions:
        best = ", ".join(f"{x['label']} {100 * x['probability']:.1f} %" for x in region["labels"])
        lines.append(f"  box {answer.names[region['box']]}: {best}")
    labels = [f"{name} {label}" for name, label in zip(answer.names, answer.labels, strict=False) if label]
    if labels and not any("box" in a for a in answer.answers):
        more = f", and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
        lines.append(f"  boxes: {', '.join(labels[:SHOWN_LABELS])}{more}")
    return "\n".join([*lines, *(f"  note: {note}" for note in answer.notes)])

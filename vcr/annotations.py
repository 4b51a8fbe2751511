"""VCR annotations (one JSON object a line) and the metadata of their images (original 8.1)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from common.errors import DataError
from common.files.archives import read_bytes
from common.files.json_files import parse_json
from vcr.text import MixedToken

NUM_CHOICES = 4
# Category of a detection by its number (original 8.6); 0 is also the category of the whole image.
_CATEGORIES = """
__background__ person bicycle car motorcycle airplane bus train truck boat trafficlight firehydrant stopsign
parkingmeter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase
frisbee skis snowboard sportsball kite baseballbat baseballglove skateboard surfboard tennisracket bottle wineglass
cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hotdog pizza donut cake chair couch
pottedplant bed diningtable toilet tv laptop mouse remote keyboard cellphone microwave oven toaster sink
refrigerator book clock vase scissors teddybear hairdrier toothbrush
"""
CATEGORIES = tuple(_CATEGORIES.split())
CATEGORY_IDS = {name: i for i, name in enumerate(CATEGORIES)}

Text = list[MixedToken]


@dataclass(frozen=True, slots=True)
class Annotation:
    """One question. where: file and line, for messages. objects: category of each detection.

    Texts are mixed tokens: a word, or a list of detections (0-based). The labels are None in test mode.
    """

    where: str
    annot_id: str
    objects: list[str]
    img_fn: str
    metadata_fn: str
    question: Text
    answers: list[Text]
    rationales: list[Text]
    answer_label: int | None = None
    rationale_label: int | None = None


class Annotations:
    """The annotations of a jsonl file in file order, every line checked at the start.

    Only ids, image names, labels and the place of each line stay in memory; an item is read again when it is asked
    for, so that the loader's processes do not hold a copy of hundreds of megabytes each.

    with_labels: False does not look at the labels, which the test file lacks.
    Raises FileNotFoundError; DataError naming file and line for a line that is no annotation, for an annot_id that is
    there twice, and for a file without annotations.
    """

    def __init__(self, path: Path | str, with_labels: bool) -> None:
        self.path, self.with_labels = Path(path), with_labels
        self.ids: list[str] = []
        self.images: list[str] = []
        self.answer_labels: list[int | None] = []
        self.rationale_labels: list[int | None] = []
        lines, starts = [], []
        if not self.path.is_file():
            raise FileNotFoundError(f"VCR annotations {self.path}: no such file")
        first: dict[str, int] = {}
        with self.path.open("rb") as file:
            start = 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    annotation = self._parse(line, number)
                    if (other := first.setdefault(annotation.annot_id, number)) != number:
                        raise DataError(
                            f"{annotation.where}: annot_id {annotation.annot_id!r} is also that of line {other}"
                        )
                    self.ids.append(annotation.annot_id)
                    self.images.append(intern(annotation.img_fn))
                    self.answer_labels.append(annotation.answer_label)
                    self.rationale_labels.append(annotation.rationale_label)
                    lines.append(number)
                    starts.append(start)
                start += len(line)
        if not self.ids:
            raise DataError(f"{self.path}: no annotations")
        self._lines, self._starts = np.array(lines), np.array(starts)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Annotation:
        """Number `index` in file order. Raises DataError when the file has changed since it was checked."""
        with self.path.open("rb") as file:
            file.seek(int(self._starts[index]))
            annotation = self._parse(file.readline(), int(self._lines[index]))
        if annotation.annot_id != self.ids[index]:
            raise DataError(f"{annotation.where}: annot_id was {self.ids[index]!r} at the start: the file has changed")
        return annotation

    def _parse(self, line: bytes, number: int) -> Annotation:
        return parse_annotation(line, f"{self.path}, line {number}", self.with_labels)


def parse_annotation(line: bytes | str, where: str, with_labels: bool) -> Annotation:
    """One line of the file. where: file and line, what errors begin with.

    Raises DataError naming the key for malformed JSON, a missing key, a wrong type, an unknown category, a reference to
    a detection that does not exist, an empty text, other than four choices, and a label outside 0..3.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # JSONDecodeError, UnicodeDecodeError
        raise DataError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got {_short(row)}")
    objects = _get(row, "objects", list, where)
    for i, name in enumerate(objects):
        if not isinstance(name, str) or name not in CATEGORY_IDS:
            raise DataError(f"{where}: objects[{i}] is {_short(name)}, expected one of the 81 VCR categories")
    return Annotation(
        where,
        _get(row, "annot_id", str, where),
        objects,
        _get(row, "img_fn", str, where),
        _get(row, "metadata_fn", str, where),
        _text(_get(row, "question", list, where), len(objects), f"{where}: question"),
        _choices(row, "answer_choices", len(objects), where),
        _choices(row, "rationale_choices", len(objects), where),
        _label(row, "answer_label", where) if with_labels else None,
        _label(row, "rationale_label", where) if with_labels else None,
    )


def _get(row: dict[str, Any], key: str, kind: type, where: str) -> Any:
    if key not in row:
        raise DataError(f"{where}: no key {key!r}")
    if not isinstance(row[key], kind):
        raise DataError(f"{where}: {key} is {_short(row[key])}, expected a {'list' if kind is list else 'string'}")
    return row[key]


def _choices(row: dict[str, Any], key: str, num_objects: int, where: str) -> list[Text]:
    choices = _get(row, key, list, where)
    if len(choices) != NUM_CHOICES:
        raise DataError(f"{where}: {key} has {len(choices)} entries, expected {NUM_CHOICES}")
    return [_text(choice, num_objects, f"{where}: {key}[{i}]") for i, choice in enumerate(choices)]


def _text(tokens: Any, num_objects: int, what: str) -> Text:
    if not isinstance(tokens, list) or not tokens:
        raise DataError(f"{what} is {_short(tokens)}, expected a list of words and references")
    for i, token in enumerate(tokens):
        if isinstance(token, str):
            continue
        if not isinstance(token, list) or not token or any(type(n) is not int for n in token):
            raise DataError(f"{what}[{i}] is {_short(token)}, expected a word or a list of detection numbers")
        for n in token:
            if not 0 <= n < num_objects:
                raise DataError(f"{what}[{i}] refers to detection {n}, there are {num_objects} objects (from 0)")
    return tokens


def _label(row: dict[str, Any], key: str, where: str) -> int:
    if key not in row:
        raise DataError(f"{where}: no key {key!r}, which all but test data need")
    label = row[key]
    if type(label) is not int or not 0 <= label < NUM_CHOICES:
        raise DataError(f"{where}: {key} is {_short(label)}, expected a number from 0 to {NUM_CHOICES - 1}")
    return label


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# ---------------------------------------------------------------------------------------------- metadata


@dataclass(frozen=True)
class Metadata:
    """The detections of an image in its own pixels.

    boxes: float32 [n, 5], xyxy and the detector's score. polygons: outlines of each detection, lists of [x, y].
    width, height: pixels, None where the file does not say.
    """

    boxes: Tensor
    polygons: list[list[Any]]
    width: int | None = None
    height: int | None = None


def read_metadata(path: str, num_objects: int, where: str = "the annotation") -> Metadata:
    """The metadata JSON of an image, a file or a member of a zip.

    num_objects: detections that the annotation lists; where: which one. Raises FileNotFoundError, and DataError naming
    the file, and the counts where boxes, segms and objects are not equally many.
    """
    try:
        content = parse_json(read_bytes(path), path)
        boxes, segms = content["boxes"], content["segms"]
        counts = len(boxes), len(segms)
    except BadZipFile as error:
        raise DataError(str(error)) from error
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: expected an object with the lists boxes and segms ({error})") from error
    if counts != (num_objects, num_objects):
        raise DataError(f"{path}: {counts[0]} boxes and {counts[1]} segms, but {where} has {num_objects} objects")
    try:
        rows = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: boxes must be rows of x1, y1, x2, y2, score: {error}") from error
    if len(rows) != num_objects or not rows.isfinite().all():
        raise DataError(f"{path}: boxes must be {num_objects} rows of five finite numbers, x1, y1, x2, y2, score")
    return Metadata(rows, segms, content.get("width"), content.get("height"))

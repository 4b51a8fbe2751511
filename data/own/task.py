"""A task as `data.own` sees it: which records it takes, and which files it reads."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from common.files.atomic import write_text
from common.regions.arguments import DetectorLimits
from data.own.images import Boxes, Images, UserImage, read_box
from data.own.lines import Line, Problems
from data.own.recipe import Recipe, TaskKeys


@dataclass(frozen=True)
class Settings:
    """The options of `python -m data.own`.

    files: records by part; without "val", `split` is the share of the images that are for training. boxes: a source of
    `common.regions.arguments.SOURCES`. encoder: vg:FILE, resnet:FILE or module:NAME. answers: the largest number of
    answers of VQA. language: folder of language weights. vocabulary: vocab.txt. skip_bad: leave out the records of
    images that cannot be used. device: of a detector and an encoder; None takes a GPU if there is one.
    """

    files: dict[str, Path]
    images: Path
    out: Path
    split: float = 0.9
    boxes: str | None = None
    encoder: str | None = None
    limits: DetectorLimits = DetectorLimits()
    answers: int = 3129
    preset: str = "tiny"
    language: Path | None = None
    vocabulary: Path | None = None
    cnn: str | None = None
    seed: int = 0
    device: str | None = None
    link: bool = False
    skip_bad: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Common:
    """The fields that the records of all tasks have. boxes: xyxy in pixels, None without the key."""

    line: Line
    id: str | int | None
    image: str
    boxes: Boxes | None
    text: str


@dataclass(frozen=True)
class Sample:
    """A record of a part. number: from 1 over all parts. target: what the task reads beside the text."""

    number: int
    record: Common
    target: Any
    image: UserImage


Parts = dict[str, list[Sample]]


class OwnTask(ABC):
    """The records and the files of a task.

    text_key: the key of a record's text. keys: the other keys beside id, image and boxes. columns: names in a CSV for
    keys. parts: those that the task has files for. number_key: the name of `Sample.number` in the files of the task.
    keeps_scores: region files have the class scores of the source.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    text_key: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]
    columns: ClassVar[dict[str, str]]
    parts: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    number_key: ClassVar[str]
    keeps_scores: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def record_keys(self, file: Path) -> tuple[str, ...]:
        """Returns the keys that a record of a file may have."""
        keys = ("id", "image", "boxes", self.text_key, *self.keys)
        return (*keys, *self.columns) if is_csv(file) else keys

    def read(self, line: Line, with_target: bool, problems: Problems) -> tuple[Common, Any]:
        """Returns the common fields and the target of a line. Adds a problem for every field that cannot be used.

        with_target: False for records of test, which need none.
        """
        columns = self.columns if is_csv(line.file) else {}
        fields = {columns.get(key, key): value for key, value in line.fields.items()}
        if not isinstance(fields.get("image"), str) or not fields["image"].strip():
            problems.add(line, f"image must be a text, got {fields.get('image')!r:.80}")
        number = fields.get("id")
        if number is not None and (isinstance(number, bool) or not isinstance(number, str | int)):
            problems.add(line, f"id must be a text or an integer, got {number!r:.80}")
        boxes, text, target = None, "", None
        try:
            boxes = read_boxes(fields["boxes"]) if "boxes" in fields else None
        except ValueError as error:
            problems.add(line, error)
        try:
            text = self.read_text(fields.get(self.text_key))
        except ValueError as error:
            problems.add(line, error)
        try:
            target = self.read_target(fields, boxes, with_target)
        except ValueError as error:
            problems.add(line, error)
        return Common(line, number, str(fields.get("image", "")), boxes, text), target

    def read_text(self, given: Any) -> str:
        """Returns the text of a record. Raises ValueError."""
        if not isinstance(given, str) or not given.strip():
            raise ValueError(f"{self.text_key} must be a text, got {given!r:.80}")
        return given

    @abstractmethod
    def read_target(self, fields: dict[str, Any], boxes: Boxes | None, required: bool) -> Any:
        """Returns what the task reads beside image, boxes and text. required: not for records of test.

        Raises ValueError for fields that cannot be used.
        """

    def prepare(self, parts: Parts, images: Images, problems: Problems) -> None:  # noqa: B027
        """Called before regions are computed, with all records of all parts. Adds a problem for what cannot be used."""

    def store_name(self, image: UserImage) -> str:
        """Returns the name of an image in the region store."""
        return str(image.number)

    @abstractmethod
    def texts(self, samples: Sequence[Sample]) -> Iterable[str]:
        """The texts that a vocabulary is made of."""

    @abstractmethod
    def write(self, folder: Path, parts: Parts) -> None:
        """Writes images, records and lists. The regions are there."""

    @abstractmethod
    def yamls(self, recipe: Recipe) -> dict[str, TaskKeys]:
        """Returns the keys of the YAML files by their names."""

    def summary(self, part: str, samples: Sequence[Sample]) -> str:
        """Returns what there is to know about a part beside its size, or ""."""
        return ""


def is_csv(file: Path) -> bool:
    return file.suffix.lower() == ".csv"


def read_boxes(given: Any) -> Boxes:
    """Returns boxes xyxy. Raises ValueError."""
    if not isinstance(given, list) or not given:
        raise ValueError(f"boxes must be a list of [x1, y1, x2, y2], got {given!r:.80}")
    return tuple(read_box(box) for box in given)


def texts_of(given: Any, key: str) -> list[Any]:
    """Returns a list of a record. Raises ValueError."""
    if not isinstance(given, list) or not given:
        raise ValueError(f"{key} must be a list, got {given!r:.80}")
    return given


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content))


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    write_text(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))

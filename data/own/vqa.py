"""Questions of the user's own as the files of VQA v2, which `vqa` reads. data/own/__main__.py is the command line."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from common.config.table import from_task
from common.errors import DataError, RegionError
from common.files.atomic import new_folder, write_text
from common.files.images import load_image
from common.regions.arguments import DetectorLimits
from common.regions.packed_store import packed_writer
from data.own.images import Images, OwnBoxes, UserImage, build_boxes
from data.own.lines import Problems, read_lines
from data.own.questions import COLUMNS, KEYS, Question, read_question
from data.own.recipe import Recipe, make_vocabulary, write_yaml

GRID = "grid:4x4"  # where neither a source nor a record has boxes
UNKNOWN = "<unk>"
MADE = ("ids.jsonl", "vqa.yaml")  # files of a folder that was made here
PARTS = {"train": "train2014", "val": "val2014", "test": "test2015"}  # image sets of VQA v2


@dataclass(frozen=True)
class Settings:
    """The options of `python -m data.own vqa`.

    files: records by part; without "val", `split` is the share of the images that are for training. boxes: a source of
    `common.regions.arguments.SOURCES`. encoder: resnet:FILE or module:NAME. answers: the largest number of answers.
    language: folder of language weights. vocabulary: vocab.txt.
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
    link: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Sample:
    number: int  # question_id
    question: Question
    image: UserImage


def convert(settings: Settings) -> None:
    """Writes the data set and its YAML, completely or not at all.

    Raises DataError with every problem of the input, FileNotFoundError for a missing file, and FileExistsError where
    `out` exists, unless it was made here and `overwrite` is True.
    """
    _check_out(settings)
    problems = Problems()
    images = Images(settings.images)
    parts = _read_parts(settings, images, problems)
    notes = _check_ids(parts, problems) + _check_parts(parts) + images.check(problems)
    problems.check()
    if "val" not in parts:
        _split(parts, settings.split, settings.seed)
    answers = _answer_list(parts["train"], settings.answers)
    source = _box_source(settings, images, problems)
    problems.check()
    with new_folder(settings.out, settings.overwrite) as folder:
        with_features = _write_regions(folder, images, source, problems)
        for part, samples in parts.items():
            _write_part(folder, part, samples, settings.link)
        write_text(folder / "vqa/answers_vqa.txt", "\n".join([UNKNOWN, *answers]) + "\n")
        write_text(folder / "ids.jsonl", "".join(_id_line(s) for samples in parts.values() for s in samples))
        words = _write_vocabulary(folder, settings, parts["train"], answers)
        recipe = Recipe(
            out=settings.out,
            samples=len(parts["train"]),
            answers=len(answers) + 1,
            preset=settings.preset,
            language=settings.language,
            vocabulary=words,
            features=with_features,
            encoder=settings.encoder,
            cnn=settings.cnn,
            test="test" in parts,
        )
        write_text(folder / "vqa.yaml", write_yaml(recipe))
    for note in notes:
        print(f"note: {note}")
    _print_summary(settings, parts, answers, with_features)


def _check_out(settings: Settings) -> None:
    """--overwrite removes the folder, so it must be one that this program made."""
    if not settings.out.exists():
        return
    if not all((settings.out / name).is_file() for name in MADE):
        raise FileExistsError(f"{settings.out} exists and was not made here (no {MADE[0]}); take another --out")
    if not settings.overwrite:
        raise FileExistsError(f"{settings.out} exists; --overwrite replaces it")


# Reading


def _read_parts(settings: Settings, images: Images, problems: Problems) -> dict[str, list[Sample]]:
    clean = partial(clean_answer, from_task("vqa", "answers", "remove_punctuation"))
    parts: dict[str, list[Sample]] = {}
    number = 0
    for part, file in settings.files.items():
        keys = (*KEYS, *COLUMNS) if file.suffix.lower() == ".csv" else KEYS
        parts[part] = []
        for line in read_lines(file, keys, problems):
            number += 1
            question = read_question(line, clean, part != "test", problems)
            image = images.add(question.image, line, question.boxes, problems)
            parts[part].append(Sample(number, question, image))
    return parts


def clean_answer(remove_punctuation: Any, answer: str) -> str:
    """Returns an answer as the answer list of `vqa` has it: lower case, without punctuation, single spaces."""
    return " ".join(str(remove_punctuation(answer.strip().lower())).split())


def _check_ids(parts: dict[str, list[Sample]], problems: Problems) -> list[str]:
    """Adds a problem for each id that comes twice. Returns notes on questions that come twice."""
    ids: dict[Any, Question] = {}
    texts: dict[tuple[int, str], Question] = {}
    notes = []
    for sample in (sample for samples in parts.values() for sample in samples):
        question = sample.question
        if question.id is not None and (first := ids.setdefault(question.id, question)) is not question:
            problems.add(question.line, f"id {question.id!r} is that of {first.line}")
        if (first := texts.setdefault((sample.image.number, question.text), question)) is not question:
            notes.append(f"{question.line} asks the question of {first.line} about the same image")
    return notes


def _check_parts(parts: dict[str, list[Sample]]) -> list[str]:
    """Returns a note for each part that shares images with training."""
    numbers = {part: {sample.image.number for sample in samples} for part, samples in parts.items()}
    shared = {part: len(numbers["train"] & found) for part, found in numbers.items() if part != "train"}
    return [f"{count} images of training are also in {part}" for part, count in shared.items() if count]


def _split(parts: dict[str, list[Sample]], share: float, seed: int) -> None:
    """Moves a share of 1 - `share` of the images, with all their questions, from "train" to "val".

    Raises DataError for a single image.
    """
    samples = parts["train"]
    numbers = sorted({sample.image.number for sample in samples})
    if len(numbers) < 2:
        raise DataError("--split needs two images at least; a validation file is --val")
    Random(seed).shuffle(numbers)
    count = min(len(numbers) - 1, max(1, round(share * len(numbers))))
    training = set(numbers[:count])
    parts["train"] = [sample for sample in samples if sample.image.number in training]
    parts["val"] = [sample for sample in samples if sample.image.number not in training]


def _answer_list(samples: Sequence[Sample], size: int) -> list[str]:
    """Returns the most frequent answers of training, counted once a question; of equal counts the first is first."""
    counts = Counter(answer for s in samples for answer in dict.fromkeys(s.question.answers) if answer)
    return [answer for answer, _ in counts.most_common(size) if answer != UNKNOWN]


def _box_source(settings: Settings, images: Images, problems: Problems) -> OwnBoxes:
    spec = settings.boxes
    if spec is None and all(image.boxes is None for image in images):
        spec = GRID
    return build_boxes(list(images), spec, settings.encoder, settings.limits, problems)


# Writing


def _write_regions(folder: Path, images: Images, source: OwnBoxes, problems: Problems) -> bool:
    """Writes the packed store of all images, without class scores. Returns whether the regions have features."""
    with_features: bool | None = None
    with packed_writer(folder / "regions.packed") as writer:
        for image in tqdm(images, unit="image", desc="regions", disable=None):
            try:
                pixels = load_image(image.path)
                regions = source.boxes(image.entry, pixels)
                regions.width, regions.height = pixels.size
                regions.class_scores = regions.attribute_scores = None  # VQA reads none, and only some images have them
                if with_features not in (None, regions.features is not None):
                    raise RegionError("some images have boxes with features, others without; --encoder is for all")
                writer.add(str(image.number), regions)
                with_features = regions.features is not None
            except RegionError as error:
                problems.add(image.first, error)
        problems.check()
    return bool(with_features)


def _write_part(folder: Path, part: str, samples: Sequence[Sample], link: bool) -> None:
    """Writes images, COCO metadata, questions and answers of an image set."""
    name = PARTS[part]
    files = from_task("vqa", "annotations", "IMAGE_SETS")[name]
    images = {sample.image.number: sample.image for sample in samples}
    rows = []
    for number, image in images.items():
        target = folder / files.images / f"COCO_{name}_{number:012d}.jpg"  # readers find the format from the content
        target.parent.mkdir(parents=True, exist_ok=True)
        (target.hardlink_to if link else partial(shutil.copyfile, dst=target))(image.path)
        rows.append({"id": number, "width": image.size[0], "height": image.size[1], "file_name": target.name})
    _write_json(folder / files.metadata, {"images": rows, "annotations": [], "categories": []})
    questions = [
        {"question_id": s.number, "image_id": s.image.number, "question": s.question.text.strip()} for s in samples
    ]
    _write_json(folder / files.questions_file, {"questions": questions})
    if part != "test":
        _write_json(folder / files.annotations_file, {"annotations": [_annotation(sample) for sample in samples]})


def _annotation(sample: Sample) -> dict[str, Any]:
    answers = sample.question.answers
    [(common, _)] = Counter(answer for answer in answers if answer).most_common(1)
    yes_no = "yes/no" if common in ("yes", "no") else "number" if common.isdigit() else "other"
    return {
        "question_id": sample.number,
        "image_id": sample.image.number,
        "question_type": " ".join(sample.question.text.lower().split()[:2]),
        "answer_type": yes_no,
        "multiple_choice_answer": common,
        "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, 1)],
    }


def _id_line(sample: Sample) -> str:
    question = sample.question
    record = {"question_id": sample.number, "id": question.id, "image": question.image, "image_id": sample.image.number}
    return json.dumps({**record, "file": str(question.line.file), "line": question.line.number}) + "\n"


def _write_vocabulary(folder: Path, settings: Settings, samples: Sequence[Sample], answers: Sequence[str]) -> int:
    """Writes `bert/vocab.txt`, unless a folder of language weights has one. Returns its number of tokens."""
    given = settings.language / "vocab.txt" if settings.language else settings.vocabulary
    if given is None:
        lines = make_vocabulary([*(sample.question.text for sample in samples), *answers])
    elif given.is_file():
        lines = given.read_text(encoding="utf-8").splitlines()
    else:
        raise FileNotFoundError(f"vocabulary {given}: no such file")
    if settings.language is None:
        write_text(folder / "bert/vocab.txt", "\n".join(lines) + "\n")
    return len(lines)


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content))


def _print_summary(
    settings: Settings, parts: dict[str, list[Sample]], answers: Sequence[str], with_features: bool
) -> None:
    known = set(answers)
    for part, samples in parts.items():
        line = f"{part:5} {len(samples):7} questions {len({s.image.number for s in samples}):7} images"
        if part != "test":
            lost = sum(known.isdisjoint(sample.question.answers) for sample in samples)
            line += f" {lost:7} questions without an answer in the list"
        print(line)
    print(
        f"{len(answers) + 1} answers with {UNKNOWN}; region features: {'yes' if with_features else 'no, from pixels'}"
    )
    print(f"train: python vqa/train_end2end.py --cfg {settings.out}/vqa.yaml")
    print(f"evaluate: python vqa/val.py --cfg {settings.out}/vqa.yaml")

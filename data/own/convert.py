"""From the user's records to a data set. data/own/__main__.py is the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from common.errors import DataError
from common.files.atomic import new_folder, write_text
from common.regions.packed_store import packed_writer
from data.own.images import Images
from data.own.lines import Problems, read_lines
from data.own.pretrain import OwnCaptions
from data.own.recipe import Recipe, make_vocabulary, write_yaml
from data.own.refcoco import OwnRefCOCO
from data.own.regions import build_regions, kept_regions, write_regions
from data.own.task import Common, OwnTask, Parts, Sample, Settings
from data.own.vcr import OwnVCR
from data.own.vqa import OwnVQA

TASKS: dict[str, type[OwnTask]] = {kind.name: kind for kind in (OwnVQA, OwnRefCOCO, OwnVCR, OwnCaptions)}
GRID = "grid:4x4"  # where neither a source nor a record has boxes
IDS, REGIONS = "ids.jsonl", "regions.packed"  # a folder with both was made here


def convert(name: str, settings: Settings) -> int:
    """Writes the data set of a task and its YAML, completely or not at all. Returns the number of records left out.

    Raises DataError with every problem of the input, FileNotFoundError for a missing file, and FileExistsError where
    `out` exists, unless it was made here and `overwrite` is True.
    """
    task = TASKS[name](settings)
    _check_out(settings.out, settings.overwrite)
    problems = Problems()
    images = Images(settings.images)
    parts = _read_parts(task, images, problems)
    notes = _check_ids(parts, problems) + _check_parts(parts) + images.check()
    if not settings.skip_bad:
        _add_faults(images, problems)
    problems.check()
    left_out = _leave_out(parts, images)
    if "val" not in parts:
        _split(parts, settings.split, settings.seed)
    task.prepare(parts, images, problems)
    problems.check()
    spec = settings.boxes
    if spec is None and all(image.boxes is None for image in images):
        spec = GRID
    compute = build_regions(settings, images, spec, problems)
    problems.check()
    with (
        kept_regions(settings, list(images), spec) as kept,
        new_folder(settings.out, settings.overwrite) as folder,
    ):
        with packed_writer(folder / REGIONS) as writer:
            write_regions(task, images, compute, writer, kept)
            if not settings.skip_bad:
                _add_faults(images, problems)
            problems.check()
        left_out += _leave_out(parts, images)
        task.write(folder, parts)
        rows = [_id_row(task, part, sample) for part, samples in parts.items() for sample in samples]
        write_text(folder / IDS, "".join(json.dumps(row) + "\n" for row in rows))
        words = _write_vocabulary(folder, task, parts["train"])
        recipe = Recipe(
            out=settings.out,
            samples=len(parts["train"]),
            preset=settings.preset,
            language=settings.language,
            vocabulary=words,
            features="features" in writer.columns,
            classes=writer.columns.get("class_scores", 0),
            encoder=settings.encoder,
            cnn=settings.cnn,
            test="test" in parts,
        )
        yamls = task.yamls(recipe)
        for file, keys in yamls.items():
            write_text(folder / file, write_yaml(task.title, task.name, recipe, keys))
    for note in [*notes, *left_out]:
        print(f"note: {note}")
    _print_summary(task, parts, recipe, list(yamls))
    return len(left_out)


def _check_out(out: Path, overwrite: bool) -> None:
    """--overwrite removes the folder, so it must be one that this program made."""
    if not out.exists():
        return
    if not (out / IDS).is_file() or not (out / REGIONS).is_dir():
        raise FileExistsError(f"{out} exists and was not made here (no {IDS} and {REGIONS}); take another --out")
    if not overwrite:
        raise FileExistsError(f"{out} exists; --overwrite replaces it")


# Reading


def _read_parts(task: OwnTask, images: Images, problems: Problems) -> Parts:
    parts: Parts = {}
    number = 0
    for part, file in task.settings.files.items():
        if part not in task.parts:
            raise DataError(f"--{part}: {task.name} has no records of {part}")
        parts[part] = []
        for line in read_lines(file, task.record_keys(file), problems):
            number += 1
            record, target = task.read(line, part != "test", problems)
            image = images.add(record.image, line, record.boxes, problems)
            parts[part].append(Sample(number, record, target, image))
    return parts


def _check_ids(parts: Parts, problems: Problems) -> list[str]:
    """Adds a problem for each id that comes twice. Returns notes on texts that come twice."""
    ids: dict[Any, Common] = {}
    texts: dict[tuple[int, str], Common] = {}
    notes = []
    for sample in (sample for samples in parts.values() for sample in samples):
        record = sample.record
        if record.id is not None and (first := ids.setdefault(record.id, record)) is not record:
            problems.add(record.line, f"id {record.id!r} is that of {first.line}")
        if (first := texts.setdefault((sample.image.number, record.text), record)) is not record:
            notes.append(f"{record.line} has the text of {first.line} about the same image")
    return notes


def _check_parts(parts: Parts) -> list[str]:
    """Returns a note for each part that shares images with training."""
    numbers = {part: {sample.image.number for sample in samples} for part, samples in parts.items()}
    shared = {part: len(numbers["train"] & found) for part, found in numbers.items() if part != "train"}
    return [f"{count} images of training are also in {part}" for part, count in shared.items() if count]


def _add_faults(images: Images, problems: Problems) -> None:
    for image in images:
        if image.fault:
            problems.add(image.first, image.fault)


def _leave_out(parts: Parts, images: Images) -> list[str]:
    """Removes the records of images that cannot be used. Returns a note for each.

    Raises DataError where a part has no record left.
    """
    notes = []
    for part, samples in parts.items():
        notes += [f"left out: {s.record.line}: {s.image.fault}" for s in samples if s.image.fault]
        parts[part] = [sample for sample in samples if not sample.image.fault]
        if not parts[part]:
            raise DataError(f"{part}: no record has an image that can be used\n" + "\n".join(notes[:10]))
    images.keep(sample.image for samples in parts.values() for sample in samples)
    return notes


def _split(parts: Parts, share: float, seed: int) -> None:
    """Moves a share of 1 - `share` of the images, with all their records, from "train" to "val".

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


# Writing


def _id_row(task: OwnTask, part: str, sample: Sample) -> dict[str, Any]:
    record = sample.record
    number = f"{part}-{sample.number}" if task.number_key == "annot_id" else sample.number
    row = {task.number_key: number, "id": record.id, "image": record.image, "image_id": sample.image.number}
    return {**row, "file": str(record.line.file), "line": record.line.number}


def _write_vocabulary(folder: Path, task: OwnTask, samples: Sequence[Sample]) -> int:
    """Writes `bert/vocab.txt`, unless a folder of language weights has one. Returns its number of tokens."""
    settings = task.settings
    given = settings.language / "vocab.txt" if settings.language else settings.vocabulary
    if given is None:
        lines = make_vocabulary(task.texts(samples))
    elif given.is_file():
        lines = given.read_text(encoding="utf-8").splitlines()
    else:
        raise FileNotFoundError(f"vocabulary {given}: no such file")
    if settings.language is None:
        write_text(folder / "bert/vocab.txt", "\n".join(lines) + "\n")
    return len(lines)


def _print_summary(task: OwnTask, parts: Parts, recipe: Recipe, yamls: Sequence[str]) -> None:
    for part, samples in parts.items():
        count = len({sample.image.number for sample in samples})
        print(f"{part:5} {len(samples):7} records {count:7} images  {task.summary(part, samples)}".rstrip())
    print(f"region features: {'yes' if recipe.features else 'no, from pixels'}")
    for file in yamls:
        print(f"train: python {task.name}/train_end2end.py --cfg {recipe.out}/{file}")

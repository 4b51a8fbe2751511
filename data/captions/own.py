"""Captions and images of one's own as a data set: what data/captions_own.py does, without its command line."""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from common.boxes import clip_boxes
from common.errors import DataError, ImageError, RegionError
from common.files.atomic import atomic_write
from common.files.images import load_image
from common.files.json_files import list_under, read_json
from common.regions.box_sources import (
    BoxSource,
    ImageEntry,
    StoredBoxes,
    build_source,
)
from common.regions.json_store import JsonRegions, save_regions
from common.regions.open import open_regions
from common.regions.regions import Regions, check_shapes
from data.captions.fetch import LostError, image_size
from data.captions.files import image_file, write_pairs
from data.captions.table import image_name, split_words

SHOWN = 20  # problems that are named on the screen
CLASSES = 1601  # NETWORK.VLBERT.visual_region_classes of the shipped configs


@dataclass(frozen=True)
class Pair:
    """A caption and its image. line: from 1. given: the path as it is written in the file."""

    line: int
    given: str
    path: Path
    words: tuple[str, ...]


def read_pairs(path: Path) -> list[Pair]:
    """The lines of a captions file; blank ones are skipped.

    Raises FileNotFoundError, and DataError naming every line that is no pair.
    """
    if not path.is_file():
        raise FileNotFoundError(f"captions {path}: no such file")
    pairs, faults = [], []
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    pairs.append(_pair(number, json.loads(line), path.parent))
                except ValueError as error:  # no JSON, no UTF-8
                    faults.append(f"{path}, line {number}: {error}")
    _refuse(faults)
    if not pairs:
        raise DataError(f"{path}: has no captions")
    return pairs


def _pair(number: int, row: Any, folder: Path) -> Pair:
    if not isinstance(row, dict) or not isinstance(row.get("image"), str) or not row["image"]:
        raise ValueError('expected an object {"image": path, "caption": text}')
    caption = row.get("caption")
    if isinstance(caption, str):
        words = split_words(caption)
    elif isinstance(caption, list) and all(isinstance(word, str) and word.strip() for word in caption):
        words = [word.strip().lower() for word in caption]
    else:
        raise ValueError(f"caption must be a text or a list of words, got {caption!r:.80}")
    if not words:
        raise ValueError("the caption is empty")
    return Pair(number, row["image"], folder / row["image"], tuple(words))


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        more = [f"... {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise DataError("\n".join([*faults[:SHOWN], *more]))


def name_images(pairs: Sequence[Pair]) -> dict[Path, tuple[str, Pair]]:
    """Every image once, by its resolved path: the name of its files, and the pair it first comes in.

    Names are numbers, so images of the same name in different folders stay apart.
    """
    images: dict[Path, tuple[str, Pair]] = {}
    for number, pair in enumerate(pairs):
        images.setdefault(_key(pair), (image_name(number), pair))
    return images


def _key(pair: Pair) -> Path:
    return Path(os.path.abspath(pair.path))


# Boxes


class CocoAnnotations(BoxSource):
    """Boxes of a COCO instances file with one-hot class scores: the background, then its categories in file order.

    An image is looked up by its path or its file name, whichever the file has as file_name; one without annotations
    gets a single box of the whole, as background.
    """

    def __init__(self, path: str) -> None:
        content = read_json(path, "COCO instances")
        images, categories = list_under(content, "images", path), list_under(content, "categories", path)
        self._path = path
        self._users: dict[str, str] = {}  # file name -> image that was looked up by it
        try:
            self._columns = {category["id"]: i + 1 for i, category in enumerate(categories)}
            self._images = {image["file_name"]: image for image in images}
            self._rows: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in images}
            for row in list_under(content, "annotations", path):
                self._rows[row["image_id"]].append(row)
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path}: an image, category or annotation lacks something or has no image: {error!r}"
            ) from error

    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        key = next((key for key in (entry.name, Path(entry.name).name) if key in self._images), None)
        if key is None:
            raise RegionError(f"{self._path} has no image {entry.name}")
        if self._users.setdefault(key, entry.path) != entry.path:
            raise RegionError(f"{self._path} has one {key}, but {self._users[key]} has that name too")
        listed = self._images[key]
        if (listed["width"], listed["height"]) != image.size:
            raise RegionError(f"is {image.size}, {self._path} says {(listed['width'], listed['height'])}")
        rows = self._rows[listed["id"]]
        width, height = image.size
        if not rows:
            return Regions(torch.tensor([[0.0, 0.0, width - 1, height - 1]]), class_scores=self._one_hot([0]))
        corner, size = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64).split(2, dim=1)
        boxes = clip_boxes(torch.cat([corner, corner + size - 1], dim=1), width, height).float()
        return Regions(boxes, class_scores=self._one_hot([self._columns[row["category_id"]] for row in rows]))

    def _one_hot(self, columns: Sequence[int]) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(columns), len(self._columns) + 1).float()


class StoredRegions(StoredBoxes):
    """Existing region files as they are, with their features."""

    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        super().boxes(entry, image)  # checks the size
        return self._store.regions(entry.name)


class NamedBoxes(BoxSource):
    """A source that knows an image by the stem of its file name. Raises DataError where two images share one."""

    def __init__(self, source: BoxSource, pairs: Sequence[Pair]) -> None:
        self._source = source
        stems: dict[str, Pair] = {}
        faults = []
        for pair in pairs:
            other = stems.setdefault(pair.path.stem, pair)
            if _key(other) != _key(pair):
                faults.append(f"line {pair.line}: {pair.given} and {other.given} (line {other.line}) have one stem")
        _refuse(faults)

    def boxes(self, entry: ImageEntry, image: Image.Image) -> Regions:
        return self._source.boxes(ImageEntry(Path(entry.name).stem, entry.path, entry.size), image)


def box_source(spec: str, pairs: Sequence[Pair], args: argparse.Namespace) -> BoxSource:
    """The source of --boxes. Raises ValueError for an unknown kind, FileNotFoundError for a missing file."""
    kind, _, argument = spec.partition(":")
    if kind == "coco":
        return CocoAnnotations(argument)
    if kind == "vcr":
        raise ValueError("--boxes vcr: is for the images of VCR; take coco:, json:, regions:, detector: or grid:")
    if kind == "regions":
        return NamedBoxes(StoredRegions(open_regions(argument)), pairs)
    source = build_source(spec, args.min_boxes, args.max_boxes, args.threshold, args.device)
    return NamedBoxes(source, pairs) if kind == "json" else source


# Writing


def place_image(source: Path, target: Path, link: bool) -> None:
    """A copy, or a hard link, of an image. Raises DataError if another image is there."""
    if target.exists():
        if not filecmp.cmp(source, target, shallow=False):
            raise DataError(
                f"{target} is there and is not {source}: the lines have changed since; take another --out, or remove "
                f"its {target.parent.name} and the region files of it"
            )
        return
    if link:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
        return
    with open(source, "rb") as given, atomic_write(target, sync=False) as file:
        shutil.copyfileobj(given, file, 1 << 20)


def write_image(
    name: str, pair: Pair, target: Path, regions_folder: Path, source: BoxSource | None, link: bool
) -> Regions | None:
    """Image and region file of one image; returns its regions, those that are there if it has some.

    Raises ImageError, RegionError or FileNotFoundError for an image that cannot be used.
    """
    try:
        image_size(pair.path.read_bytes())
    except LostError as error:
        raise ImageError(f"{error.reason}: {error.detail}") from error
    place_image(pair.path, target, link)
    if source is None:
        return None
    try:
        return JsonRegions(regions_folder).regions(name)
    except (FileNotFoundError, RegionError):
        image = load_image(pair.path)
        regions = source.boxes(ImageEntry(pair.given, str(pair.path)), image)
        regions.width, regions.height = image.size
        check_shapes(regions, name)
        save_regions(regions_folder, name, regions)
        return regions


def convert(args: argparse.Namespace) -> int:
    """The whole conversion; returns the exit status. Raises DataError naming every line that must be mended."""
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    pairs = read_pairs(args.captions)
    source = box_source(args.boxes, pairs, args) if args.boxes else None
    images = name_images(pairs)
    bad: dict[Path, str] = {}
    widths: set[int] = set()
    for key, (name, pair) in tqdm(images.items(), unit="image"):
        try:
            regions = write_image(
                name, pair, image_file(args.out, args.split, name), regions_folder(args), source, args.link
            )
        except (ImageError, RegionError, FileNotFoundError) as error:
            bad[key] = f"{args.captions}, line {pair.line}: {pair.given}: {error}"
            continue
        if regions is not None:
            widths.add(0 if regions.class_scores is None else regions.class_scores.shape[1])
    if not args.skip_bad:
        _refuse(list(bad.values()))
    good = [pair for pair in pairs if _key(pair) not in bad]
    count = write_pairs(args.out, args.split, ((images[_key(p)][0], p.words) for p in good), args.overwrite)
    for message in bad.values():
        print(f"left out: {message}")
    print(f"{count} captions of {len(images) - len(bad)} images in {args.out / args.split}_frcnn.json")
    print("\n".join(advice(args, widths)))
    return 1 if bad else 0


def regions_folder(args: argparse.Namespace) -> Path:
    return args.out / f"{args.split}_{'frcnn' if args.complete else 'boxes'}"


def advice(args: argparse.Namespace, widths: set[int]) -> list[str]:
    """What is to be set and done before training. widths: numbers of classes in the region files, 0 for none."""
    start = f"{args.out / args.split}"
    if not args.boxes:
        return [f"no --boxes: the region files {start}_frcnn are still needed"]
    lines = []
    if not args.complete:
        lines.append(
            f"features: python -m data.extract_features --images {start}_image --boxes regions:{start}_boxes "
            f"--out {start}_frcnn --weights RESNET.model"
        )
    if widths == {0}:
        lines.append("no class scores, so masked regions have no target: set NETWORK.WITH_MVRC_LOSS=false")
    elif len(widths) > 1:
        lines.append(f"WARNING: region files differ in their number of classes (0: none): {sorted(widths)}")
    elif widths != {CLASSES}:
        lines.append(f"set NETWORK.VLBERT.visual_region_classes={widths.pop()}, the number of classes here")
    return lines

"""A data set from the user's own captions and images. data/captions_own.py is the command line."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common.detect.sources import build_source
from common.errors import DataError, ImageError, RegionError
from common.files.atomic import atomic_write
from common.files.images import load_image
from common.precision import set_tf32
from common.regions.arguments import DetectorLimits
from common.regions.box_sources import BoxSource, ImageEntry, name_in
from common.regions.json_store import JsonRegions, save_regions
from common.regions.names import region_name
from common.regions.regions import Regions, check_shapes
from data.captions.fetch import LostError, image_size
from data.captions.files import image_file, write_pairs
from data.captions.table import image_name, split_words

SHOWN = 20  # problems that are printed
CLASSES = 1601  # NETWORK.VLBERT.visual_region_classes of the shipped configs


@dataclass(frozen=True)
class Pair:
    """A caption and its image. line: line of the captions file, from 1. given: the path in that file."""

    line: int
    given: str
    path: Path
    words: tuple[str, ...]


def read_pairs(path: Path) -> list[Pair]:
    """Returns the pairs of a captions file. Blank lines are skipped.

    Raises FileNotFoundError, and DataError naming every line that is not a pair.
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
    """Returns every image once, by its absolute path: the name of its files, and the first pair with this image.

    The names are numbers, so images of the same file name in different folders stay apart.
    """
    images: dict[Path, tuple[str, Pair]] = {}
    for number, pair in enumerate(pairs):
        images.setdefault(_key(pair), (image_name(number), pair))
    return images


def _key(pair: Pair) -> Path:
    return Path(os.path.abspath(pair.path))


# Boxes


def box_source(spec: str, pairs: Sequence[Pair], limits: DetectorLimits, device: str) -> BoxSource:
    """Returns the source that --boxes names.

    Raises ValueError for an unknown kind, FileNotFoundError for a missing file, DataError for two images that the
    source cannot tell apart.
    """
    if spec.startswith("vcr:"):
        raise ValueError("--boxes vcr: is for the images of VCR; take coco:, json:, regions:, vg:, detector: or grid:")
    source = build_source(spec, limits, device, with_features=True, with_classes=True)
    _check_names(pairs, source)
    return source


def _entry(pair: Pair) -> ImageEntry:
    return ImageEntry(region_name(pair.path), str(pair.path))


def _check_names(pairs: Sequence[Pair], source: BoxSource) -> None:
    """Raises DataError naming every line whose image has, in the source, the name of another image."""
    users: dict[str, Pair] = {}
    faults = []
    for pair in pairs:
        try:
            name = name_in(source, _entry(pair))
        except RegionError:
            continue  # without boxes; reported with the images that cannot be used
        if name is None:
            return
        other = users.setdefault(name, pair)
        if _key(other) != _key(pair):
            faults.append(
                f"line {pair.line}: {pair.given} and {other.given} (line {other.line}) have one name, {name!r}"
            )
    _refuse(faults)


# Writing


def place_image(source: Path, target: Path, link: bool) -> None:
    """Makes a copy, or a hard link, of an image. Raises DataError if another image has this place."""
    if target.exists():
        if not filecmp.cmp(source, target, shallow=False):
            raise DataError(
                f"{target} exists and is not {source}: the lines have changed since; take another --out, or remove "
                f"its {target.parent.name} and its region files"
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
    """Writes the image and the region file of one image. Keeps an existing region file. Returns the regions, None
    without a source.

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
        regions = source.boxes(_entry(pair), image)
        regions.width, regions.height = image.size
        check_shapes(regions, name)
        save_regions(regions_folder, name, regions)
        return regions


@dataclass(frozen=True)
class Settings:
    """The options of `python -m data.captions_own`.

    captions: file of pairs. out: folder to make. boxes: as in `common.regions.arguments.SOURCES`, None for no region
    files. device: of a detector. complete: the region files need no features. link: hard links to the images instead of
    copies. skip_bad: leave out images that cannot be used. overwrite: replace files with more records.
    """

    captions: Path
    out: Path
    split: str
    boxes: str | None = None
    limits: DetectorLimits = DetectorLimits()
    device: str | None = None
    complete: bool = False
    link: bool = False
    skip_bad: bool = False
    overwrite: bool = False

    @property
    def regions_folder(self) -> Path:
        return self.out / f"{self.split}_{'frcnn' if self.complete else 'boxes'}"


def convert(settings: Settings) -> int:
    """Writes the data set. Returns the exit status: 1 if images were left out, else 0.

    Raises DataError naming every line that must be mended.
    """
    out, split = settings.out, settings.split
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    set_tf32(False, device)
    pairs = read_pairs(settings.captions)
    source = box_source(settings.boxes, pairs, settings.limits, device) if settings.boxes else None
    images = name_images(pairs)
    bad: dict[Path, str] = {}
    widths: set[int] = set()
    for key, (name, pair) in tqdm(images.items(), unit="image"):
        target = image_file(out, split, name)
        try:
            regions = write_image(name, pair, target, settings.regions_folder, source, settings.link)
        except (ImageError, RegionError, FileNotFoundError) as error:
            bad[key] = f"{settings.captions}, line {pair.line}: {pair.given}: {error}"
            continue
        if regions is not None:
            widths.add(0 if regions.class_scores is None else regions.class_scores.shape[1])
    if not settings.skip_bad:
        _refuse(list(bad.values()))
    good = [pair for pair in pairs if _key(pair) not in bad]
    count = write_pairs(out, split, ((images[_key(p)][0], p.words) for p in good), settings.overwrite)
    for message in bad.values():
        print(f"left out: {message}")
    print(f"{count} captions of {len(images) - len(bad)} images in {out / split}_frcnn.json")
    print("\n".join(next_steps(settings, widths)))
    return 1 if bad else 0


def next_steps(settings: Settings, widths: set[int]) -> list[str]:
    """Returns lines about what is to do before training. widths: the numbers of classes in the region files, 0 for
    region files without class scores."""
    start = f"{settings.out / settings.split}"
    if not settings.boxes:
        return [f"no --boxes: the region files {start}_frcnn are still needed"]
    lines = []
    if not settings.complete:
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

"""Region features of images: what data/extract_features.py does, without its command line."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from common.data.transforms import Transform
from common.errors import ImageError, RegionError
from common.files.images import load_image
from common.nn.fast_rcnn import FastRCNN
from common.predict.image_features import RegionEncoder
from common.regions.box_sources import BoxSource, ImageEntry, build_source
from common.regions.regions import (
    JsonRegions,
    Regions,
    check,
    check_shapes,
    open_regions,
    pack,
    save_regions,
    unpack,
)
from common.weights.build import FAST
from common.weights.foreign import load_backbone

logger = logging.getLogger(__name__)

PIXEL_MEANS = (102.9801, 115.9465, 122.7717)  # BGR, of the weights that all shipped configurations use
PIXEL_STDS = (1.0, 1.0, 1.0)

Encode = Callable[[Sequence[Image.Image], Sequence[Tensor]], list[Tensor]]


@dataclass
class Outcome:
    """Names of the images written now, found there already, and failed (with why)."""

    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def extract(
    entries: Sequence[ImageEntry],
    source: BoxSource,
    encode: Encode,
    out: str | Path,
    batch_size: int = 1,
    workers: int = 0,
) -> Outcome:
    """Writes `<out>/<name>.json` for every image that has no valid one yet.

    Besides the source's boxes each file gets the feature of the whole image (image_box_feature), and the class scores
    that the source gives. Images that cannot be read or have unusable boxes end in Outcome.failed.
    """
    Path(out).mkdir(parents=True, exist_ok=True)
    outcome = Outcome()
    done = JsonRegions(out)
    todo = []
    for entry in entries:
        (outcome.skipped.append(entry.name) if _is_valid(done, entry) else todo.append(entry))
    loader = DataLoader(_Images(todo), batch_size=None, num_workers=workers)
    with tqdm(total=len(todo), unit="image", desc="features") as progress:
        for chunk in _chunks(_with_boxes(loader, todo, source, outcome, progress), batch_size):
            names, images, regions = zip(*chunk, strict=True)
            features = encode(images, [torch.cat([_whole(r), r.boxes]) for r in regions])
            for name, entry, rows in zip(names, regions, features, strict=True):
                entry.image_feature, entry.features = rows[0], rows[1:]
                save_regions(out, name, entry)
                outcome.written.append(name)
                progress.update()
    return outcome


class _Images(Dataset):
    """The decoded images, or the message of why there is none: an exception would end the whole run."""

    def __init__(self, entries: Sequence[ImageEntry]) -> None:
        self._images = entries

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Image.Image | str:
        try:
            return load_image(self._images[index].path)
        except (ImageError, OSError) as error:
            return str(error)


def _with_boxes(
    images: DataLoader, entries: Sequence[ImageEntry], source: BoxSource, outcome: Outcome, progress: tqdm
) -> Iterator[tuple[str, Image.Image, Regions]]:
    """Name, image and regions (without features) of the good ones; the others go to outcome.failed."""
    for entry, image in zip(entries, images, strict=True):
        try:
            if isinstance(image, str):
                raise ImageError(image)
            regions = source.boxes(entry, image)
            regions.width, regions.height = image.size
            check_shapes(regions, entry.name)
        except (ImageError, RegionError) as error:
            progress.write(f"FAILED {entry.name}: {error}")
            outcome.failed[entry.name] = str(error)
            progress.update()
        else:
            yield entry.name, image, regions


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _whole(regions: Regions) -> Tensor:
    assert regions.width is not None and regions.height is not None, "set when the boxes were read"
    return torch.tensor([[0.0, 0.0, regions.width - 1, regions.height - 1]])


def _is_valid(store: JsonRegions, entry: ImageEntry) -> bool:
    """Whether the image's file is there and complete. Reads it all: an interrupted copy leaves a plausible name."""
    try:
        regions = store.regions(entry.name)
    except (FileNotFoundError, RegionError):
        return False
    return regions.features is not None and regions.image_feature is not None


# What the command line starts


def run(args: argparse.Namespace) -> int:
    """Exit code: 0 all well, 1 some images failed or have problems. Raises ValueError and OSError for the rest."""
    if args.check:
        return run_check(args)
    if not args.out:
        raise ValueError("--out is missing")
    if args.pack:
        store = pack(open_regions(args.pack), args.out, args.dtype)
        print(f"{args.out}: {store.meta['count']} images, {store.meta['rows']} boxes, {args.dtype}")
        return 0
    if args.unpack:
        print(f"{args.out}: {len(unpack(open_regions(args.unpack), args.out).names())} files")
        return 0
    return run_extract(args)


def run_check(args: argparse.Namespace) -> int:
    """Prints the problems of a store by image; with --images every image must have an entry."""
    store = open_regions(args.check)
    entries = build_source(args.boxes or "grid:1x1").entries(args.images) if args.images else []
    problems = check(
        store,
        [entry.name for entry in entries] or None,
        {entry.name: entry.size for entry in entries if entry.size},
    )
    for problem in problems:
        print(problem)
    print(f"{store.path}: {len(entries) or len(store.names())} images checked, {len(problems)} problems")
    return 1 if problems else 0


def run_extract(args: argparse.Namespace) -> int:
    """Extracts, prints and records the outcome; packs if asked and no image failed."""
    if not args.images or not args.boxes:
        raise ValueError("--images and --boxes are needed")
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    source = build_source(args.boxes, args.min_boxes, args.max_boxes, args.threshold, args.device)
    entries = source.entries(args.images)[: args.limit]
    if not entries:
        raise FileNotFoundError(f"no images in {args.images}")
    settings = _settings(args)
    info_file = Path(f"{str(args.out).rstrip('/')}.info.json")
    _check_settings(info_file, settings, args.out)
    encode = build_encoder(args)
    info_file.parent.mkdir(parents=True, exist_ok=True)
    info_file.write_text(json.dumps({"settings": settings}, indent=1))
    outcome = extract(entries, source, encode, args.out, args.batch, args.workers)
    info_file.write_text(json.dumps({"settings": settings, "failed": outcome.failed}, indent=1))
    written, skipped, failed = len(outcome.written), len(outcome.skipped), len(outcome.failed)
    print(f"{args.out}: {written} written, {skipped} already there, {failed} failed")
    for name, message in outcome.failed.items():
        print(f"FAILED {name}: {message}")
    packed = f"{str(args.out).rstrip('/')}.packed"
    if args.packed and not outcome.failed:
        pack(JsonRegions(args.out), packed, args.dtype, settings, overwrite=True)
    elif args.packed:
        print("not packed because of the failures; --pack packs what is there")
    elif outcome.written and os.path.exists(packed):
        print(f"WARNING: {packed} is older than these files and is read in their place; --packed renews it")
    return 1 if outcome.failed else 0


def build_encoder(args: argparse.Namespace) -> RegionEncoder:
    """The FastRCNN that the options describe. Raises FileNotFoundError without weights, unless --random-weights."""
    if not args.random_weights and not (args.weights and os.path.isfile(args.weights)):
        raise FileNotFoundError(
            f"no ResNet weights at {args.weights}: get them (model/README.md), or try the program with --random-weights"
        )
    torch.manual_seed(0)  # with random weights: the same ones when a run is resumed
    model = FastRCNN(args.layers, dilated_c5=not args.no_dilated, stride_in_1x1=not args.stride_in_3x3, parts=FAST)
    if args.random_weights:
        print("WARNING: RANDOM WEIGHTS. These features mean nothing; they are for tests of the pipeline only.")
    else:
        load_backbone(model, args.weights)
    transform = Transform(tuple(args.scales), PIXEL_MEANS, PIXEL_STDS)
    return RegionEncoder(model, transform, args.device, getattr(torch, args.precision))


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What decides the values of a feature, so what must not change between runs into one folder."""
    kind, _, path = args.boxes.partition(":")
    settings = {
        "boxes": kind,
        "weights": "random" if args.random_weights else _digest(args.weights),
        "layers": args.layers,
        "dilated_c5": not args.no_dilated,
        "stride_in_1x1": not args.stride_in_3x3,
        "scales": list(args.scales),
        "precision": args.precision,
    }
    if kind == "detector":
        settings["detector"] = [_digest(path), args.min_boxes, args.max_boxes, args.threshold]
    return settings


def _check_settings(info_file: Path, settings: dict[str, Any], out: str) -> None:
    """Raises ValueError where `out` holds features made in another way, which a resumed run would mix with its own."""
    if info_file.exists():
        before = json.loads(info_file.read_text())["settings"]
        if before != settings:
            changed = {key: (before.get(key), value) for key, value in settings.items() if before.get(key) != value}
            raise ValueError(f"{out} was made with other settings (was, now): {changed}; choose another --out")
    elif os.path.isdir(out) and JsonRegions(out).names():
        raise ValueError(f"{out} has region files but no {info_file.name}: not made here; choose another --out")


def _digest(path: str | None) -> str | None:
    """ "<file name> sha256:<start of the hash>", None for no file (the builders report that)."""
    if not path or not os.path.isfile(path):
        return None
    return f"{os.path.basename(path)} sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}"

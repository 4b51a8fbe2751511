"""Extraction of region features. data/extract_features.py is the command line."""

from __future__ import annotations

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
from common.detect.sources import build_source
from common.errors import ConfigError, ImageError, RegionError
from common.files.archives import read_bytes
from common.files.images import load_image
from common.nn.cpu.memory import keep_freed_memory
from common.nn.fast_rcnn import FastRCNN
from common.precision import set_tf32
from common.predict.region_features import RegionFeatureExtractor
from common.regions.arguments import DetectorLimits
from common.regions.box_sources import BoxSource, ImageEntry, ModuleBoxes
from common.regions.check import check
from common.regions.json_store import JsonRegions, save_regions, unpack
from common.regions.names import stored_name
from common.regions.open import open_regions
from common.regions.packed_store import pack
from common.regions.regions import FEATURE_DIM, Regions, check_shapes
from common.weights.build import FAST
from common.weights.foreign import load_backbone
from data.regions.runs import Shard, record_failures, run_in

logger = logging.getLogger(__name__)

PIXEL_MEANS = (102.9801, 115.9465, 122.7717)  # BGR, of the weights that all shipped configurations use
PIXEL_STDS = (1.0, 1.0, 1.0)

KINDS_WITH_FEATURES = ("vg", "regions")  # box sources that can bring the features of their boxes

Encode = Callable[[Sequence[Image.Image], Sequence[Tensor]], list[Tensor]]


@dataclass
class Outcome:
    """Names of the images that were written, skipped because their file exists, and failed (with the error)."""

    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def extract(
    entries: Sequence[ImageEntry],
    source: BoxSource,
    encode: Encode | None,
    out: str | Path,
    batch_size: int = 1,
    workers: int = 0,
) -> Outcome:
    """Writes `<out>/<name>.json` for every image without a valid file.

    A file has the boxes and class scores of the source, their features, and the feature of the whole image
    (image_box_feature). Images that cannot be read or have unusable boxes are in Outcome.failed.

    encode: None takes the features of the source and adds no image feature. Raises ConfigError for a source without.
    """
    Path(out).mkdir(parents=True, exist_ok=True)
    outcome = Outcome()
    done = JsonRegions(out)
    todo = []
    for entry in tqdm(entries, unit="image", desc="files that are there", disable=None):
        valid = _is_valid(done, entry, encode is not None)
        (outcome.skipped.append(entry.name) if valid else todo.append(entry))
    loader = DataLoader(_Images(todo), batch_size=None, num_workers=workers)
    with tqdm(total=len(todo), unit="image", desc="features") as progress:
        for chunk in _chunks(_with_boxes(loader, todo, source, outcome, progress), batch_size):
            names, images, regions = zip(*chunk, strict=True)
            if encode is not None:
                set_features(encode, images, regions)
            for name, entry in zip(names, regions, strict=True):
                if entry.features is None:
                    raise ConfigError(f"the box source has no features of {name}: --weights is needed")
                save_regions(out, name, entry)
                outcome.written.append(name)
                progress.update()
    return outcome


def set_features(encode: Encode, images: Sequence[Image.Image], regions: Sequence[Regions]) -> None:
    """Computes the features of regions and of the whole image. regions: of each image, with its width and height."""
    features = encode(images, [torch.cat([_whole(r), r.boxes]) for r in regions])
    for entry, rows in zip(regions, features, strict=True):
        entry.image_feature, entry.features = rows[0], rows[1:]


class _Images(Dataset):
    """The decoded images, or the message of the error: an exception would end the whole run."""

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
    """Yields name, image and regions (without features) of the good images. Adds the others to outcome.failed."""
    for entry, image in zip(entries, images, strict=True):
        try:
            if isinstance(image, str):
                raise ImageError(image)
            regions = _boxes(source, entry, image)
            regions.width, regions.height = image.size
            check_shapes(regions, entry.name)
        except (ImageError, RegionError, OSError) as error:
            progress.write(f"FAILED {entry.name}: {error}")
            outcome.failed[entry.name] = str(error)
            progress.update()
        else:
            yield entry.name, image, regions


def _boxes(source: BoxSource, entry: ImageEntry, image: Image.Image) -> Regions:
    """Any error of a user's module is an error of this image; running out of memory is not."""
    try:
        return source.boxes(entry, image)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        if isinstance(source, ModuleBoxes):
            raise RegionError(f"{type(error).__name__}: {error}") from error
        raise


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


def _is_valid(store: JsonRegions, entry: ImageEntry, with_image_feature: bool) -> bool:
    """Returns whether the image has a complete region file.

    Reads all of it, because an interrupted copy of a folder leaves files that are cut off. Compares the lengths of the
    base64 texts with the number of boxes and decodes none.
    """
    try:
        name = stored_name(store, entry.path, entry.name)
        record = json.loads(read_bytes(f"{store.path}/{name}.json"))
        count = record["num_boxes"]
        lengths = {"boxes": count * 4, "features": count * FEATURE_DIM}
        if with_image_feature:
            lengths["image_box_feature"] = FEATURE_DIM
        return count >= 1 and all(len(record[key]) == 4 * -(-4 * n // 3) for key, n in lengths.items())
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


# Runs of the command line


@dataclass(frozen=True)
class Network:
    """The FastRCNN of a run. weights: file of the ResNet. random_weights: build one without a file, for tests of the
    pipeline. scales: the shorter and the longest side of an image in pixels. precision: name of a torch dtype."""

    weights: str | None = None
    random_weights: bool = False
    layers: int = 101
    dilated_c5: bool = True
    stride_in_1x1: bool = True
    scales: tuple[int, int] = (600, 1000)
    precision: str = "float32"


@dataclass(frozen=True)
class Settings:
    """One extraction. images: a folder, or "<archive>.zip@/<folder>". boxes: as in `common.regions.arguments.SOURCES`.
    out: folder of the JSON files. batch: images in a forward pass. limit: number of images, None for all. packed: write
    <out>.packed at the end, with features of `dtype`. device: None takes a GPU if there is one. shard: part of the
    images (after `limit`)."""

    images: str
    boxes: str
    out: str
    network: Network = Network()
    limits: DetectorLimits = DetectorLimits()
    batch: int = 1
    workers: int = 0
    limit: int | None = None
    packed: bool = False
    dtype: str = "float32"
    device: str | None = None
    shard: Shard = Shard()

    @property
    def source_features(self) -> bool:
        """Whether the features are those of the box source."""
        kind = self.boxes.partition(":")[0]
        return kind in KINDS_WITH_FEATURES and not self.network.weights and not self.network.random_weights

    def identity(self) -> dict[str, Any]:
        """What decides the values of a feature, and must not change between runs into one folder."""
        network = self.network
        kind, _, path = self.boxes.partition(":")
        identity: dict[str, Any] = {
            "boxes": kind,
            "weights": "random" if network.random_weights else file_digest(network.weights),
            "layers": network.layers,
            "dilated_c5": network.dilated_c5,
            "stride_in_1x1": network.stride_in_1x1,
            "scales": list(network.scales),
            "precision": network.precision,
        }
        if self.source_features:
            identity = {"boxes": kind, "features": "of the source", "precision": network.precision}
            if kind == "regions":
                identity["regions"] = os.path.abspath(path)
        if kind in ("detector", "vg"):
            limits = self.limits
            identity[kind] = [file_digest(path), limits.min_boxes, limits.max_boxes, limits.threshold]
        return identity


def run_check(path: str, images: str | None, boxes: str | None) -> int:
    """Prints the problems of a store by image. images: every image of this folder, or of the COCO file that `boxes`
    names, must have an entry. Returns the exit status: 1 if there are problems, else 0."""
    store = open_regions(path)
    entries = build_source(boxes or "grid:1x1").entries(images) if images else []
    names = [stored_name(store, entry.path, entry.name) for entry in entries]
    sizes = {name: entry.size for name, entry in zip(names, entries, strict=True) if entry.size}
    problems = check(store, names or None, sizes)
    for problem in problems:
        print(problem)
    print(f"{store.path}: {len(entries) or len(store.names())} images checked, {len(problems)} problems")
    return 1 if problems else 0


def run_unpack(path: str, out: str) -> None:
    print(f"{out}: {len(unpack(open_regions(path), out).names())} files")


def run_extract(settings: Settings) -> int:
    """Extracts, prints and records the outcome; packs if asked and no image failed.

    Returns the exit status: 1 if images failed, else 0. Raises FileNotFoundError without images or weights, and
    ConfigError if an earlier run into this folder had other settings or another run has these images in work.
    """
    out = settings.out
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    keep_freed_memory(torch.device(device))
    set_tf32(False, device)
    own = settings.source_features
    precision = getattr(torch, settings.network.precision)
    source = build_source(settings.boxes, settings.limits, device, with_features=own, precision=precision)
    entries = source.entries(settings.images)[: settings.limit]
    if not entries:
        raise FileNotFoundError(f"no images in {settings.images}")
    identity = settings.identity()
    encode = None if own else build_encoder(settings.network, device)
    with run_in(out, settings.shard, entries, identity) as mine:
        outcome = extract(mine, source, encode, out, settings.batch, settings.workers)
        record_failures(out, mine, outcome.failed)
        _print_outcome(out, outcome)
        _pack_outcome(settings, entries, outcome, identity)
    return 1 if outcome.failed else 0


def _print_outcome(out: str, outcome: Outcome) -> None:
    written, skipped, failed = len(outcome.written), len(outcome.skipped), len(outcome.failed)
    print(f"{out}: {written} written, {skipped} already there, {failed} failed")
    for name, message in outcome.failed.items():
        print(f"FAILED {name}: {message}")


def _pack_outcome(
    settings: Settings, entries: Sequence[ImageEntry], outcome: Outcome, identity: dict[str, Any]
) -> None:
    out = settings.out
    packed = f"{out.rstrip('/')}.packed"
    store = JsonRegions(out)
    if settings.packed and outcome.failed:
        print("not packed because of the failures; --pack packs what is there")
    elif settings.packed and settings.shard.count > 1 and not all(entry.name in store for entry in entries):
        print(f"not packed because images of other shards are missing; --pack {out} --out {packed} is the last step")
    elif settings.packed:
        pack(store, packed, settings.dtype, identity, overwrite=True)
    elif outcome.written and os.path.exists(packed):
        print(f"WARNING: {packed} is older than these files and is read in their place; --packed renews it")


def build_encoder(network: Network, device: str) -> RegionFeatureExtractor:
    """Builds the FastRCNN with its weights. Raises FileNotFoundError for missing weights."""
    if not network.random_weights and not (network.weights and os.path.isfile(network.weights)):
        raise FileNotFoundError(
            f"no ResNet weights at {network.weights}: model/pretrained_model/PREPARE_PRETRAINED_MODELS.md lists where "
            "they were published; --random-weights tries the program without them"
        )
    torch.manual_seed(0)  # random weights are the same ones when a run is resumed
    model = FastRCNN(network.layers, dilated_c5=network.dilated_c5, stride_in_1x1=network.stride_in_1x1, parts=FAST)
    if network.weights and not network.random_weights:
        load_backbone(model, network.weights)
    else:
        print("WARNING: RANDOM WEIGHTS. These features mean nothing; they are for tests of the pipeline only.")
    transform = Transform(network.scales, PIXEL_MEANS, PIXEL_STDS)
    return RegionFeatureExtractor(model, transform, device, getattr(torch, network.precision))


def file_digest(path: str | None) -> str | None:
    """Returns "<file name> sha256:<start of the hash>", None without a file."""
    if not path or not os.path.isfile(path):
        return None
    return f"{os.path.basename(path)} sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}"

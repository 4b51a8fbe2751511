"""The regions of the user's images: boxes of the records or of a source, and their features."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import astuple
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from common.boxes import iou
from common.detect.sources import VisualGenomeBoxes, build_detector, build_source
from common.errors import ImageError, RegionError
from common.files.images import load_image
from common.precision import set_tf32
from common.predict.region_features import DetectorFeatures
from common.predict.user_images import ModuleFeatureExtractor
from common.regions.box_sources import BoxSource, ImageEntry, name_in
from common.regions.json_store import JsonRegions, save_regions
from common.regions.lazy_features import read_features
from common.regions.packed_store import PackedWriter
from common.regions.regions import Regions
from data.own.images import Boxes, Images, UserImage
from data.own.lines import Problems
from data.own.task import OwnTask, Settings
from data.regions.extract import Encode, Network, build_encoder, file_digest, set_features
from data.regions.runs import Shard, run_in

POSITIVE_IOU = 0.5  # a box above it stands for a required box, as in the labels of refcoco
SLOW = ("vg", "detector")  # box sources whose regions are kept when a run is stopped


class OwnRegions:
    """Computes the regions of an image.

    source: of the images whose records have no boxes. encode: computes features; None takes those of the source.
    only_missing: `encode` is for boxes that have no features of the source. whole: `encode` also makes the feature of
    the whole image.
    """

    def __init__(
        self, source: BoxSource | None, encode: Encode | None = None, only_missing: bool = False, whole: bool = True
    ) -> None:
        self._source, self._encode, self._only_missing, self._whole = source, encode, only_missing, whole

    def __call__(self, image: UserImage, pixels: Image.Image) -> Regions:
        """Raises RegionError, or ImageError for an image that a detector cannot use."""
        if image.boxes is not None:
            regions = Regions(torch.tensor(image.boxes, dtype=torch.float32))
        elif self._source is None:
            raise RegionError("the record has no boxes, though others have; give --boxes")
        else:
            regions = self._source.boxes(image.entry, pixels)
        regions.width, regions.height = pixels.size
        if self._encode is not None and not (self._only_missing and regions.features is not None):
            set_features(self._encode, [pixels], [regions])
            if not self._whole:
                regions.image_feature = None
        self._add_required(image.required, regions, pixels)
        return regions

    def _add_required(self, required: Boxes, regions: Regions, pixels: Image.Image) -> None:
        """Appends the boxes that no region stands for. Regions with features of a store stay as they are."""
        if not required or (regions.features is not None and self._encode is None):
            return
        wanted = torch.tensor(required, dtype=torch.float32)
        missing = wanted[iou(regions.boxes, wanted).amax(0) <= POSITIVE_IOU]
        if not len(missing):
            return
        regions.boxes = torch.cat([regions.boxes, missing])
        if regions.features is not None and self._encode is not None:
            [rows] = self._encode([pixels], [missing])
            regions.features = torch.cat([read_features(regions.features), rows])


def build_regions(settings: Settings, images: Images, spec: str | None, problems: Problems) -> OwnRegions:
    """Returns what computes the regions. spec: the source of boxes, None for those of the records.

    Adds a problem for two images that the source cannot tell apart. Raises as `build_source` and `build_encoder` do.
    """
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    set_tf32(False, device)
    encoder = settings.encoder or ""
    kind, _, argument = (spec or "").partition(":")
    detector = None
    if kind == "vg":
        detector = build_detector(argument, settings.limits, device)
        source: BoxSource | None = VisualGenomeBoxes(detector, with_features=not encoder)
    else:
        source = (
            build_source(spec, settings.limits, device, with_features=not encoder, with_classes=True) if spec else None
        )
    if source is not None:
        _check_names(images, source, spec, problems)
    if encoder.startswith("module:"):
        return OwnRegions(source, ModuleFeatureExtractor(encoder.removeprefix("module:")))
    if encoder.startswith("resnet:"):
        return OwnRegions(source, build_encoder(Network(weights=encoder.removeprefix("resnet:")), device))
    if encoder.startswith("vg:") and encoder != spec:
        detector = build_detector(encoder.removeprefix("vg:"), settings.limits, device)
    if detector is None:
        return OwnRegions(source)
    return OwnRegions(source, DetectorFeatures(detector), only_missing=not encoder, whole=False)


def _check_names(images: Images, source: BoxSource, spec: str | None, problems: Problems) -> None:
    """Adds a problem for each image that has, in the source, the name of another image."""
    users: dict[str, UserImage] = {}
    for image in images:
        try:
            name = name_in(source, image.entry)
        except RegionError:
            continue  # without boxes; reported with the images that cannot be used
        if name is not None and users.setdefault(name, image) is not image and image.boxes is None:
            problems.add(image.first, f"{image.path} and {users[name].path} have one name in {spec}, {name!r}")


# Writing


def write_regions(task: OwnTask, images: Images, compute: OwnRegions, writer: PackedWriter, kept: KeptRegions) -> None:
    """Adds the regions of all images to a packed store. Sets the fault of an image that cannot be used."""
    for image in tqdm(images, unit="image", desc="regions", disable=None):
        try:
            regions = kept.read(image)
            if regions is None:
                regions = compute(image, load_image(image.path))
                kept.write(image, regions)
            if not task.keeps_scores:
                regions.class_scores = None
            regions.attribute_scores = None
            _check_fields(regions, writer)
            writer.add(task.store_name(image), regions)
            image.found = regions.boxes
        except (RegionError, ImageError, OSError) as error:
            image.fault = str(error)


def _check_fields(regions: Regions, writer: PackedWriter) -> None:
    """Raises RegionError where this image has features or class scores and others have none, or the reverse."""
    if not writer.count:
        return
    for key, value, cure in (
        ("features", regions.features, "--encoder is for all"),
        ("class_scores", regions.class_scores, "boxes of the records have none"),
    ):
        if (value is not None) != (key in writer.columns):
            what = key.replace("_", " ")
            raise RegionError(f"some images have regions with {what}, others without; {cure}")


class KeptRegions:
    """Region files in `<out>.regions`, so that the same command goes on after a stop. Without a folder nothing is kept.

    A file has the name of the content of the image and of the boxes in its records.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._store = None if folder is None else JsonRegions(folder)

    def read(self, image: UserImage) -> Regions | None:
        """Returns the regions of an image, None if there are none or the file is damaged."""
        if self._store is None:
            return None
        try:
            return self._store.regions(kept_name(image)).in_memory()
        except (FileNotFoundError, RegionError):
            return None

    def write(self, image: UserImage, regions: Regions) -> None:
        if self._folder is not None:
            save_regions(self._folder, kept_name(image), regions)


def kept_name(image: UserImage) -> str:
    return sha256(f"{image.digest} {image.boxes} {image.required}".encode()).hexdigest()[:32]


@contextmanager
def kept_regions(settings: Settings, images: Sequence[UserImage], spec: str | None) -> Iterator[KeptRegions]:
    """Yields the region files of this data set; only features, and the boxes of a detector, are worth keeping.

    The files are removed after a block without error. Raises ConfigError if another run works on them, or if they were
    computed with other options.
    """
    kind = (spec or "").partition(":")[0]
    if settings.encoder is None and kind not in SLOW:
        with nullcontext():
            yield KeptRegions(None)
        return
    folder = settings.out.with_name(f"{settings.out.name}.regions")
    identity: dict[str, Any] = {}
    for key, value in (("boxes", spec), ("encoder", settings.encoder)):
        identity[key] = [value, file_digest((value or "").partition(":")[2])]
    if kind in SLOW:
        identity["limits"] = list(astuple(settings.limits))
    entries = [ImageEntry(kept_name(image), str(image.path)) for image in images]
    with run_in(str(folder), Shard(), entries, identity):
        folder.mkdir(parents=True, exist_ok=True)
        yield KeptRegions(folder)
    shutil.rmtree(folder)
    for file in (f"{folder.name}.info.json", f"{folder.name}.lock"):
        folder.with_name(file).unlink(missing_ok=True)

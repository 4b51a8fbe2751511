"""The boxes that an expression may mean: annotations, detections, regions with or without features (original 10.4).

All boxes are xyxy in pixels of the original image, x2 = x + w and y2 = y + h, neither clipped nor sorted nor filtered.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pycocotools.coco import COCO
from torch import Tensor

from common.errors import DataError
from common.files.json_files import list_under, read_json
from common.regions.lazy_features import Features, mean_feature, select_features
from common.regions.names import stored_name
from common.regions.regions import Regions, RegionStore
from refcoco.files import IMAGE_FOLDER

# Regions stored for annotations may end at x + w or at x + w - 1, and be clipped to the image.
BOX_TOLERANCE = 1.0


@dataclass(frozen=True)
class AnnotatedImage:
    """What COCO says about an image.

    width, height: in pixels. ann_ids: of its R annotations in file order, crowds too. boxes: float64 [R, 4].
    """

    width: int
    height: int
    ann_ids: tuple[int, ...]
    boxes: Tensor


@dataclass(frozen=True)
class Candidates:
    """The R candidates of an image in the order the model sees them, without the image as a whole.

    boxes: float32 [R, 4]. ann_ids: the annotation that a box is, None for a detection. features: float32 [R, 2048] or
    None. image_feature: float32 [2048] of the whole image, None for the mean of the features.
    """

    boxes: Tensor
    ann_ids: tuple[int | None, ...]
    features: Features | None = None
    image_feature: Tensor | None = None


class CandidateSource:
    """Candidates by image id.

    mode: parts joined by +, "proposal" first whatever their order: "gt", "proposal", "proposal+gt", "gt+proposal".
    detections: float32 [R, 4] by image id; an image without any is left out. regions: the store that has the proposals
    where `detections` is None, and with `with_features` the features of the proposals or of the annotations; an image
    is found in it as `stored_name` defines.
    """

    def __init__(
        self,
        images: Mapping[int, AnnotatedImage],
        mode: str,
        detections: Mapping[int, Tensor] | None = None,
        regions: RegionStore | None = None,
        with_features: bool = False,
    ) -> None:
        self.images, self.detections, self.regions, self.with_features = images, detections, regions, with_features
        parts = mode.split("+")
        self.proposals, self.annotations = "proposal" in parts, "gt" in parts

    def __call__(self, image_id: int, features: bool = True) -> Candidates:
        """features: False leaves them out, where there are any, and does not read them.

        Raises DataError where the regions are not those of the image, FileNotFoundError where it has none.
        """
        if self.with_features and features:
            return self._with_features(image_id)
        boxes: list[Tensor] = [torch.zeros(0, 4)]
        ann_ids: list[int | None] = []
        if self.proposals:
            boxes.append(self._proposals(image_id))
            ann_ids += [None] * len(boxes[-1])
        if self.annotations:
            boxes.append(self.images[image_id].boxes.float())
            ann_ids += self.images[image_id].ann_ids
        return Candidates(torch.cat(boxes), tuple(ann_ids))

    def is_empty(self, image_id: int) -> bool:
        """Whether an image has no candidate at all; no region file is read, they have at least one box."""
        if self.annotations and self.images[image_id].ann_ids:
            return False
        return not self.proposals or (self.detections is not None and image_id not in self.detections)

    def _proposals(self, image_id: int) -> Tensor:
        if self.detections is None:
            return self._regions(image_id, with_features=False).boxes
        return self.detections.get(image_id, torch.zeros(0, 4))

    def _with_features(self, image_id: int) -> Candidates:
        regions = self._regions(image_id, with_features=True)
        if regions.features is None:
            raise DataError(
                f"{self._name(image_id)} has no features, NETWORK.IMAGE_FEAT_PRECOMPUTED is true: "
                "data/extract_features.py computes them"
            )
        if self.proposals:
            return Candidates(regions.boxes, (None,) * len(regions.boxes), regions.features, regions.image_feature)
        image = self.images[image_id]
        boxes = image.boxes.float()
        if len(boxes):
            self._check_same(regions.boxes, boxes, image_id)
            return Candidates(boxes, image.ann_ids, regions.features, regions.image_feature)
        # An image without annotations has one region, the whole image.
        whole = mean_feature(regions.features) if regions.image_feature is None else regions.image_feature
        return Candidates(boxes, image.ann_ids, select_features(regions.features, []), whole)

    def _check_same(self, regions: Tensor, annotations: Tensor, image_id: int) -> None:
        """Features belong to annotations by position alone, so the boxes have to agree."""
        wanted = "the annotations of the image in their order, which box mode gt needs"
        if len(regions) != len(annotations):
            raise DataError(
                f"{self._name(image_id)}: {len(regions)} boxes for {len(annotations)} annotations; expected {wanted}"
            )
        apart = (regions - annotations).abs().amax(1)
        worst = int(apart.argmax())
        if apart[worst] > BOX_TOLERANCE + 1e-3:
            raise DataError(
                f"{self._name(image_id)}: box {worst} is {_rounded(regions[worst])}, annotation {worst} is "
                f"{_rounded(annotations[worst])}; expected {wanted}"
            )

    def _regions(self, image_id: int, with_features: bool) -> Regions:
        assert self.regions is not None, "proposals without detections, and features, come from a region store"
        name = stored_name(self.regions, image_file(image_id), str(image_id))
        return self.regions.regions(name, with_features)

    def _name(self, image_id: int) -> str:
        assert self.regions is not None
        return f"{self.regions.path}: image {image_id}"


def image_file(image_id: int) -> str:
    """The file name of an image."""
    return f"COCO_{IMAGE_FOLDER}_{image_id:012d}.jpg"


def load_annotations(path: Path, image_ids: Collection[int]) -> dict[int, AnnotatedImage]:
    """Size and annotations of some images from a COCO instances file.

    Raises FileNotFoundError, or DataError naming the file and the record that cannot be used or is not there.
    """
    coco = COCO()
    coco.dataset = read_json(path, "COCO annotations")
    for key in ("images", "annotations"):
        list_under(coco.dataset, key, path)
    try:
        with redirect_stdout(io.StringIO()):  # it prints its progress
            coco.createIndex()
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: images need an id, annotations id and image_id; one has no {error}") from error
    return {i: _annotated_image(coco, i, path) for i in sorted(image_ids)}


def _annotated_image(coco: COCO, image_id: int, path: Path) -> AnnotatedImage:
    if image_id not in coco.imgs:
        raise DataError(f"{path}: no image {image_id}, which a reference is about")
    image = coco.imgs[image_id]
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=image_id))
    try:
        width, height = int(image["width"]), int(image["height"])
        boxes = [read_box(annotation["bbox"]) for annotation in annotations]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: image {image_id} needs width, height and annotations with bbox [x, y, w, h]: {error}"
        ) from error
    ids = tuple(annotation["id"] for annotation in annotations)
    return AnnotatedImage(width, height, ids, xywh_to_xyxy(torch.tensor(boxes, dtype=torch.float64).view(-1, 4)))


def load_detections(path: Path, image_ids: Collection[int]) -> dict[int, Tensor]:
    """Boxes float32 [R, 4] by image id, in file order, from a list of {image_id, box: [x, y, w, h]} (original 10.2).

    image_ids: the images of interest; the rest of the file is only looked at. Raises FileNotFoundError, or DataError
    naming the file and the entry that is no detection; also when not one of the images has a detection.
    Sums are of float32 numbers, as in the original, which makes a difference in the last bit.
    """
    content = read_json(path, "detections")
    if not isinstance(content, list):
        raise DataError(f"{path}: expected a list of detections, found {type(content).__name__}")
    wanted, boxes = set(image_ids), defaultdict(list)
    for number, detection in enumerate(content):
        try:
            if detection["image_id"] in wanted:
                boxes[detection["image_id"]].append(read_box(detection["box"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: entry {number} needs image_id and box [x, y, w, h], got {str(detection)[:120]}"
            ) from error
    if not boxes:
        raise DataError(f"{path}: {len(content)} detections, none of them of the {len(wanted)} images of this split")
    return {i: xywh_to_xyxy(torch.tensor(rows, dtype=torch.float32)) for i, rows in boxes.items()}


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[R, 4] of x, y, w, h to x, y, x + w, y + h: no pixel is taken off, although IoU counts both borders
    (original 10.5)."""
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)


def read_box(box: Any) -> list[float]:
    """Raises ValueError or TypeError unless `box` is four finite numbers."""
    x, y, w, h = (float(value) for value in box)
    if not all(map(math.isfinite, (x, y, w, h))):
        raise ValueError(f"{list(box)} is not finite")
    return [x, y, w, h]


def _rounded(box: Sequence[float] | Tensor) -> list[float]:
    return [round(float(value), 1) for value in box]

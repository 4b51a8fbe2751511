"""RefCOCO+, RefCOCO and RefCOCOg: an expression and the boxes that it may refer to (original 10.1 to 10.8)."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from common.boxes import iou
from common.config import Config
from common.config.derived import usable_positions
from common.data.build import build_transform
from common.data.dataset import TaskDataset
from common.data.sample import Sample
from common.data.text import BertTokenizer, join_segments, load_tokenizer, swap_left_right
from common.data.transforms import Transform
from common.errors import ConfigError, DataError
from common.regions.open import open_regions
from common.regions.regions import with_image_box
from refcoco.candidates import (
    Candidates,
    CandidateSource,
    image_file,
    load_annotations,
    load_detections,
    read_box,
)
from refcoco.files import DETECTIONS_FILE, IMAGE_FOLDER, INSTANCES_FILE, REGION_FOLDER
from refcoco.refer import REFER

log = logging.getLogger(__name__)

POSITIVE_IOU = 0.5  # a candidate above it is labelled as the referent
# Positions that an expression cannot have: [CLS], [SEP], the regions' and END's.
RESERVED_POSITIONS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Expression:
    """One sentence and its referent. box: of the annotation, xyxy in pixels of the original image."""

    sent_id: int
    ref_id: int
    ann_id: int
    image_id: int
    tokens: tuple[str, ...]
    box: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Choices:
    """The boxes of a sample, one of which a prediction chooses; the whole image may be one of them.

    boxes: float32 [R, 4], xyxy in pixels of the original image, clipped to it. ann_ids: the annotation of each box,
    None for a detection or the whole image.
    """

    boxes: Tensor
    ann_ids: tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class ExpressionFiles:
    """Where the expressions and images of a dataset lie.

    root: DATASET_PATH. image_sets: splits joined by +. dataset: "refcoco+", "refcoco" or "refcocog". split_by: whose
    split, "unc", "google" or "umd". zip_mode: images and region files lie in zips.
    """

    root: Path
    image_sets: str
    dataset: str = "refcoco+"
    split_by: str = "unc"
    zip_mode: bool = False


@dataclasses.dataclass(frozen=True)
class CandidateSettings:
    """Which boxes of an image an expression may refer to.

    boxes: "gt", "proposal", "proposal+gt" or "gt+proposal". proposal_source: "official" detections or "vg" regions.
    region_path: folder, zip or packed store of the latter; None for the folder of the data layout. precomputed: take
    features from region_path, and open no image; for "gt", or "proposal" from "vg". image_box: the whole image is
    candidate 0.

    Raises DataError for boxes without precomputed features.
    """

    boxes: str = "gt"
    proposal_source: str = "official"
    region_path: str | None = None
    precomputed: bool = False
    image_box: bool = True

    def __post_init__(self) -> None:
        """A region store has the features of one set of boxes only."""
        if self.precomputed and self.boxes != "gt" and (self.boxes, self.proposal_source) != ("proposal", "vg"):
            raise DataError(
                f"box mode {self.boxes!r} with PROPOSAL_SOURCE {self.proposal_source!r} and "
                "NETWORK.IMAGE_FEAT_PRECOMPUTED: expected 'gt', or 'proposal' with 'vg', because a region store has "
                "the features of one set of boxes"
            )


class RefCOCODataset(TaskDataset):
    """The expressions of one or several splits, in the order of the references and of the sentences in them.

    with_labels: whether samples have targets {"label": float32 [R]}, 1 for a candidate whose IoU with the referent is
    above POSITIVE_IOU. max_positions: positions of the encoder's sequence.

    Raises FileNotFoundError and DataError for files that are missing or cannot be used together.
    """

    def __init__(
        self,
        files: ExpressionFiles,
        candidates: CandidateSettings,
        tokenizer: BertTokenizer,
        transform: Transform,
        with_labels: bool = True,
        max_positions: int = 512,
    ) -> None:
        self.root, self.zip_mode = files.root, files.zip_mode
        self.name, self.image_sets, self.boxes = files.dataset, files.image_sets, candidates.boxes
        self.tokenizer = tokenizer
        self.transform = transform
        self.precomputed = candidates.precomputed
        self.with_labels = with_labels
        self.image_box = candidates.image_box
        self.max_expression = max_positions - RESERVED_POSITIONS
        self.expressions = load_expressions(self.root, files.dataset, files.split_by, files.image_sets)
        image_ids = {e.image_id for e in self.expressions}
        self.images = load_annotations(self.root / INSTANCES_FILE, image_ids)
        self.candidates = self._candidate_source(files, candidates, image_ids)
        self._check_empty(image_ids)

    def __len__(self) -> int:
        return len(self.expressions)

    def sample(self, index: int, rng: random.Random) -> Sample:
        expression = self.expressions[index]
        candidates = self._with_image_box(expression.image_id)
        path = self.image_path(expression.image_id)
        image = None if self.precomputed else self._image(expression.image_id)
        # The target goes through the same frame changes as the candidates, in the first row.
        rows = torch.cat([torch.tensor([expression.box], dtype=torch.float32), candidates.boxes])
        state = self.transform(None, rows, self._im_info(expression.image_id), None, rng)
        rows = state.inside
        target, boxes = rows[:1], rows[1:]
        text_ids, segment_ids = self._text(expression, state.flipped)
        return Sample(
            id=expression.sent_id,
            im_info=state.im_info,
            boxes=boxes,
            image=None if image is None else self.image_cache.pixels(path, image, state.flipped, self.transform),
            image_key=(expression.image_id, state.flipped),
            features=candidates.features,
            text_ids=text_ids,
            segment_ids=segment_ids,
            targets={"label": (iou(boxes, target)[:, 0] > POSITIVE_IOU).float()} if self.with_labels else {},
            target_pads={"label": -1.0},
        )

    @property
    def image_keys(self) -> Sequence[int] | None:
        return None if self.precomputed else [e.image_id for e in self.expressions]

    @property
    def group_ids(self) -> Sequence[int]:
        images = (self.images[e.image_id] for e in self.expressions)
        return [0 if image.width >= image.height else 1 for image in images]

    def choices(self, index: int) -> Choices:
        """The boxes of sample `index` in pixels of the original image, after resizing, clipping and scaling back."""
        image_id = self.expressions[index].image_id
        candidates = self._with_image_box(image_id, features=False)
        upright = dataclasses.replace(self.transform, flip_prob=0.0)
        state = upright(None, candidates.boxes, self._im_info(image_id), None, random.Random(0))
        boxes = state.inside
        return Choices(boxes / state.im_info[[2, 3, 2, 3]], candidates.ann_ids)

    def image_path(self, image_id: int) -> str:
        base = f"{IMAGE_FOLDER}.zip@/{IMAGE_FOLDER}" if self.zip_mode else IMAGE_FOLDER
        return f"{self.root}/{base}/{image_file(image_id)}"

    def _image(self, image_id: int) -> Image.Image:
        path, listed = self.image_path(image_id), self.images[image_id]
        image = self.image_cache.image(path)
        if image.size != (listed.width, listed.height):
            size = f"{image.size[0]} x {image.size[1]}"
            raise DataError(f"{path} is {size}, the COCO annotations say {listed.width} x {listed.height}")
        return image

    def _im_info(self, image_id: int) -> Tensor:
        image = self.images[image_id]
        return torch.tensor([image.width, image.height, 1.0, 1.0])

    def _with_image_box(self, image_id: int, features: bool = True) -> Candidates:
        candidates, image = self.candidates(image_id, features), self.images[image_id]
        if not self.image_box:
            return candidates
        boxes, rows = with_image_box(
            candidates.boxes, candidates.features, candidates.image_feature, image.width, image.height
        )
        return dataclasses.replace(candidates, boxes=boxes, features=rows, ann_ids=(None, *candidates.ann_ids))

    def _text(self, expression: Expression, flipped: bool) -> tuple[Tensor, Tensor]:
        """`[CLS] expression [SEP]`; a flipped image swaps left and right."""
        tokenizer = self.tokenizer
        tokens = tokenizer.tokenize(" ".join(expression.tokens))
        tokens = swap_left_right(tokens) if flipped else tokens
        return expression_sequence(tokenizer.real_ids(tokens)[: self.max_expression], tokenizer)

    def _candidate_source(
        self, files: ExpressionFiles, settings: CandidateSettings, image_ids: set[int]
    ) -> CandidateSource:
        proposals = "proposal" in settings.boxes
        detections = regions = None
        if settings.precomputed or (proposals and settings.proposal_source == "vg"):
            regions = open_regions(settings.region_path or self.root / REGION_FOLDER, files.zip_mode)
        elif proposals:
            detections = load_detections(self.root / files.dataset / DETECTIONS_FILE, image_ids)
        return CandidateSource(self.images, settings.boxes, detections, regions, settings.precomputed)

    def _check_empty(self, image_ids: set[int]) -> None:
        """Raises DataError if an image has no candidate and no image box, else logs a warning (original 10.7)."""
        empty = sorted(i for i in image_ids if self.candidates.is_empty(i))
        if not empty:
            return
        what = (
            f"box mode {self.boxes}: {len(empty)} of {len(image_ids)} images have no candidate, the first is {empty[0]}"
        )
        if not self.image_box:
            raise DataError(f"{what}; DATASET.ADD_IMAGE_AS_A_BOX: true would give them one")
        log.warning("%s; they have only the whole image", what)


def expression_sequence(ids: list[int], tokenizer: BertTokenizer) -> tuple[Tensor, Tensor]:
    """Token ids [T] of `[CLS] expression [SEP]` and segment ids [T], from the expression's word-piece ids."""
    text_ids, segment_ids = join_segments([ids], tokenizer.cls_id, tokenizer.sep_id)
    return torch.tensor(text_ids), torch.tensor(segment_ids)


def load_expressions(root: Path, dataset: str, split_by: str, image_sets: str) -> list[Expression]:
    """The expressions of the splits in `image_sets` (joined by +), one split after the other.

    Raises DataError for an unknown or empty split, splits that overlap, and what REFER raises.
    """
    refer = REFER(root, dataset, split_by)
    expressions: list[Expression] = []
    for split in image_sets.split("+"):
        ref_ids = refer.get_ref_ids(split=split.strip())
        if not ref_ids or not split.strip():
            there = ", ".join(sorted({ref["split"] for ref in refer.refs.values()})) or "no split at all"
            raise DataError(f"{refer.path}: no reference in split {split!r} (of {image_sets!r}); it has {there}")
        for ref in refer.load_refs(ref_ids):
            expressions += _expressions_of(ref, refer)
    if len({e.sent_id for e in expressions}) < len(expressions):
        raise DataError(f"image sets {image_sets!r}: splits that overlap would count expressions twice")
    if not expressions:
        raise DataError(f"{refer.path}: the references of {image_sets!r} have no sentence")
    return expressions


def _expressions_of(ref: dict[str, Any], refer: REFER) -> list[Expression]:
    try:
        x, y, w, h = read_box(refer.get_ref_box(ref["ref_id"]))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{refer.instances_path}: annotation {ref['ann_id']} needs bbox [x, y, w, h] in numbers: {error}"
        ) from error
    target = (ref["ref_id"], ref["ann_id"], ref["image_id"])
    box = (x, y, x + w, y + h)
    return [Expression(s["sent_id"], *target, tuple(s["tokens"]), box) for s in ref["sentences"]]


def build_dataset(cfg: Config, split: str) -> RefCOCODataset:
    """The dataset of a config for "train", "val" or "test"; test has no labels.

    Raises ConfigError for box modes that features or results cannot have, and what RefCOCODataset raises.
    """
    dataset, upper = cfg.DATASET, split.upper()
    try:
        candidates = CandidateSettings(
            boxes=dataset[f"{upper}_BOXES"],
            proposal_source=dataset.PROPOSAL_SOURCE,
            region_path=dataset.REGION_PATH or None,
            precomputed=cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED,
            image_box=dataset.ADD_IMAGE_AS_A_BOX,
        )
    except DataError as error:
        raise ConfigError(f"DATASET.{upper}_BOXES: {error}") from error
    if split == "test" and cfg.TEST.FLIP_PROB:
        raise ConfigError(
            f"TEST.FLIP_PROB = {cfg.TEST.FLIP_PROB}: expected 0, boxes of mirrored images would be written as results"
        )
    files = ExpressionFiles(
        Path(dataset.DATASET_PATH),
        dataset[f"{upper}_IMAGE_SET"],
        dataset=dataset.DATASET or "refcoco+",
        split_by=dataset.SPLIT_BY,
        zip_mode=dataset.ZIP_MODE,
    )
    return RefCOCODataset(
        files,
        candidates,
        load_tokenizer(cfg.NETWORK.BERT_MODEL_NAME),
        build_transform(cfg, split),
        with_labels=split != "test",
        max_positions=usable_positions(cfg),
    )

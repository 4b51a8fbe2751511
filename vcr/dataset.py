"""Samples of VCR: a question, or a question with its answer, and four choices about an image (original 8.1 to 8.11)."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.config import Config
from common.data.build import build_transform
from common.data.dataset import TaskDataset
from common.data.sample import Sample
from common.data.text import load_tokenizer
from common.data.transforms import Transform
from common.errors import ConfigError, DataError
from common.regions.lazy_features import Features, mean_feature, select_features
from common.regions.names import stored_name, unique_names
from common.regions.open import open_regions
from common.regions.regions import RegionStore, with_image_box
from vcr.annotations import CATEGORY_IDS, Annotation, Annotations, Metadata, read_metadata
from vcr.masks import instance_mask
from vcr.sequence import TextSequenceBuilder
from vcr.text import GENDER_NEUTRAL_NAMES, MAX_TOKENS, PERSON, Q2A, replacement_names

MAX_BOX_ERROR = 1.0  # pixels between a box of the metadata and that of its precomputed feature


@dataclass(frozen=True)
class Boxes:
    """The boxes of a sample in pixels of the original image; the whole image is the first one if it counts as a box.

    boxes: float32 [R, 4]. classes: int64 [R]. masks: float32 [R, S, S], or features: float32 [R, 2048].
    """

    boxes: Tensor
    classes: Tensor
    masks: Tensor | None
    features: Features | None


class VCRDataset(TaskDataset):
    """The questions of an annotation file.

    annotations: read with labels for the targets {"label": int64 []}. Without labels (test) QA2R has each of the four
        answers as a query: 16 sequences, number 4 * answer + rationale, never truncated.
    images: folder of images and metadata, which may lie in a zip ("<archive>.zip@/<folder>").
    sequences: builds the text sequences, and names the task. "Q2A" has the four answers of the question as choices,
        "QA2R" the four rationales of the question and the right answer.
    mask_size: side of the instance masks. walk_names: take names where the last sample stopped, as the original does,
        so that a sample depends on the samples before it; otherwise the annotation id chooses the first name.
    regions: store of precomputed features; no image is opened then.

    Raises RegionError if `regions` is given and two images have the same name in it.
    """

    def __init__(
        self,
        annotations: Annotations,
        images: str,
        sequences: TextSequenceBuilder,
        transform: Transform,
        mask_size: int = 14,
        walk_names: bool = False,
        regions: RegionStore | None = None,
    ) -> None:
        self.annotations = annotations
        self.images = images
        self.sequences = sequences
        self.transform = transform
        self.mask_size = mask_size
        self.walk_names = walk_names
        self.next_name = 0  # of the walk
        self._regions = regions
        if regions is not None:
            unique_names(annotations.images, str(annotations.path))

    @property
    def task(self) -> str:
        """Q2A or QA2R."""
        return self.sequences.task

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def image_keys(self) -> Sequence[int] | None:
        if self._regions is not None or self.walk_names:  # the walk goes in the order of the file
            return None
        numbers: dict[str, int] = {}
        return [numbers.setdefault(image, len(numbers)) for image in self.annotations.images]

    @property
    def ids(self) -> list[str]:
        """annot_id of every sample."""
        return self.annotations.ids

    def sample(self, index: int, rng: random.Random) -> Sample:
        everything = self.annotations[index]
        metadata = self.metadata(everything)
        path = f"{self.images}/{everything.img_fn}"
        image = None if self._regions is not None else self.image_cache.image(path)
        width, height = self._listed_size(everything, metadata) if image is None else image.size
        annotation, keep = self.sequences.relevant(everything)
        boxes = self._boxes(annotation, metadata, keep, width, height)
        queries = self.sequences.queries(annotation, self.detection_names(annotation))
        sequences = self.sequences.build(annotation, queries)
        im_info = torch.tensor([width, height, 1.0, 1.0])
        state = self.transform(None, boxes.boxes, im_info, boxes.masks, rng)
        text_ids, segment_ids, text_tags = ([torch.tensor(sequence[i]) for sequence in sequences] for i in range(3))
        return Sample(
            id=annotation.annot_id,
            im_info=state.im_info,
            boxes=state.inside,
            image=None if image is None else self.image_cache.pixels(path, image, state.flipped, self.transform),
            image_key=(everything.img_fn, state.flipped),
            features=boxes.features,
            box_classes=boxes.classes,
            box_masks=state.masks,
            text_ids=text_ids,
            segment_ids=segment_ids,
            text_tags=text_tags,
            targets={"label": torch.tensor(self._label(annotation))} if self.annotations.with_labels else {},
        )

    def _label(self, annotation: Annotation) -> int | None:
        return annotation.answer_label if self.task == Q2A else annotation.rationale_label

    def detection_names(self, annotation: Annotation) -> list[str]:
        """The name of each detection; moves the walk on.

        A hash of the id chooses the first name. If it were the same in every image, the later names would be rare in
        training and would count the persons before them. Q2A and QA2R give a person the same name.
        """
        first = zlib.crc32(annotation.annot_id.encode()) % len(GENDER_NEUTRAL_NAMES)
        if self.walk_names:
            first = self.next_name
            self.next_name += annotation.objects.count(PERSON)
        return replacement_names(annotation.objects, first)

    # ------------------------------------------------------------------------------------------ boxes

    def metadata(self, annotation: Annotation) -> Metadata:
        """All detections of the image. annotation: with all of its objects. Raises the errors of `read_metadata`."""
        return read_metadata(f"{self.images}/{annotation.metadata_fn}", len(annotation.objects), annotation.where)

    def _boxes(self, annotation: Annotation, metadata: Metadata, keep: list[int], width: int, height: int) -> Boxes:
        """keep: numbers of the detections used, those of annotation.objects, in the metadata."""
        boxes, classes = metadata.boxes[keep, :4], [CATEGORY_IDS[name] for name in annotation.objects]
        masks = features = whole = None
        if self._regions is None:
            masks = self._masks(annotation, metadata, keep)
        else:
            features, whole = self._features(annotation, metadata.boxes[:, :4])
            features = select_features(features, keep)
        if self.sequences.image_box:
            boxes, features = with_image_box(boxes, features, whole, width, height)
            classes = [0, *classes]
            masks = None if masks is None else torch.cat([torch.ones(1, *masks.shape[1:]), masks])
        if not classes:
            raise DataError(f"{annotation.where}: no detection to use; DATASET.ADD_IMAGE_AS_A_BOX: true gives it a box")
        return Boxes(boxes, torch.tensor(classes), masks, features)

    def _masks(self, annotation: Annotation, metadata: Metadata, keep: list[int]) -> Tensor:
        """float32 [n, S, S] of the detections used."""
        masks = torch.zeros(len(keep), self.mask_size, self.mask_size)
        for mask, i in zip(masks, keep, strict=True):
            try:
                box = metadata.boxes[i, :4].numpy()
                mask.copy_(torch.from_numpy(instance_mask(metadata.polygons[i], box, self.mask_size)))
            except (TypeError, ValueError) as error:
                raise DataError(f"{self.images}/{annotation.metadata_fn}: segms[{i}]: {error}") from error
        return masks

    def _features(self, annotation: Annotation, boxes: Tensor) -> tuple[Features, Tensor]:
        """Features [n, 2048] of all detections, and [2048] of the whole image or their mean.

        Raises DataError if the entry of the store has other boxes than `boxes` [n, 4].
        """
        assert self._regions is not None
        name = stored_name(self._regions, annotation.img_fn)
        entry = self._regions.regions(name)
        what = f"{self._regions.path}: regions of {name!r}"
        if entry.features is None:
            raise DataError(f"{what}: no features, NETWORK.IMAGE_FEAT_PRECOMPUTED is true")
        if len(entry.boxes) != len(boxes):
            raise DataError(f"{what}: {len(entry.boxes)} boxes, the metadata of {annotation.where} has {len(boxes)}")
        error = (entry.boxes - boxes).abs().max()
        if error > MAX_BOX_ERROR:
            raise DataError(f"{what}: a box is {error:.1f} pixels off the metadata of {annotation.where}")
        return entry.features, mean_feature(entry.features) if entry.image_feature is None else entry.image_feature

    def _listed_size(self, annotation: Annotation, metadata: Metadata) -> tuple[int, int]:
        if not metadata.width or not metadata.height:
            path = f"{self.images}/{annotation.metadata_fn}"
            raise DataError(f"{path}: no width and height, which NETWORK.IMAGE_FEAT_PRECOMPUTED needs")
        return metadata.width, metadata.height


def build_dataset(cfg: Config, split: str, seq_len: int = MAX_TOKENS) -> VCRDataset:
    """The dataset of a config for "train", "val" or "test"; test has no labels. seq_len: see TextSequenceBuilder.

    Raises ConfigError for switches that exclude each other, FileNotFoundError and DataError for files that are missing
    or cannot be used.
    """
    dataset, network, upper = cfg.DATASET, cfg.NETWORK, split.upper()
    file, folder = dataset[f"{upper}_ANNOTATION_FILE"], dataset[f"{upper}_IMAGE_SET"]
    if not file:
        raise ConfigError(f"DATASET.{upper}_ANNOTATION_FILE is empty: expected a file under DATASET.DATASET_PATH")
    sequences = TextSequenceBuilder.from_config(cfg, load_tokenizer(network.BERT_MODEL_NAME), seq_len)
    root = Path(dataset.DATASET_PATH)
    region_path = dataset.REGION_PATH if network.IMAGE_FEAT_PRECOMPUTED else ""
    return VCRDataset(
        Annotations(root / file, with_labels=split != "test"),
        f"{root}/{folder}.zip@/{folder}" if dataset.ZIP_MODE else f"{root}/{folder}",
        sequences,
        build_transform(cfg, split, fixed_padding=True),
        mask_size=dataset.MASK_SIZE,
        walk_names=dataset.PERSON_NAMES == "walk",
        regions=open_regions(region_path, dataset.ZIP_MODE) if region_path else None,
    )

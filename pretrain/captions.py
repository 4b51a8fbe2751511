"""Captions with regions: Conceptual Captions and COCO (original 5.1 to 5.15)."""

from __future__ import annotations

import logging
import random
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image

from common.data.dataset import TaskDataset
from common.data.sample import Sample
from common.data.text import BertTokenizer
from common.data.transforms import Transform, blank_pixels
from common.errors import DataError, ImageError
from common.files.archives import split_region_path, unpacked
from common.files.images import load_image
from common.files.json_files import list_under, read_json
from common.files.lines import LineFile
from common.regions.lazy_features import Features, put_first, read_features, select_features
from common.regions.names import file_stem, stored_name
from common.regions.open import open_regions
from common.regions.regions import Regions, RegionStore, with_image_box
from pretrain.masking import (
    NO_LABEL,
    WordMasker,
    cut_keeping_last,
    image_feature_without,
    joint_lengths,
    mask_regions,
)
from pretrain.records import read_record

log = logging.getLogger(__name__)

MANY = 10  # images that cannot be read, and not one that can: then the path is wrong


@dataclass(frozen=True)
class CaptionSettings:
    """How samples are made of captions and regions.

    seq_len: most word pieces and regions together. num_classes: width of the class scores. precomputed: features come
    from files instead of images. with_relationship, with_mlm, with_mvrc: which losses are on, so which targets are
    drawn. mask_raw_pixels: hide regions in the image. image_box: the whole image is region 0.
    """

    tokenizer: BertTokenizer
    transform: Transform
    seq_len: int = 64
    num_classes: int = 1601
    precomputed: bool = False
    with_relationship: bool = False
    with_mlm: bool = True
    with_mvrc: bool = True
    mask_raw_pixels: bool = True
    image_box: bool = True


class CaptionDataset(TaskDataset):
    """What the caption data sets share: from a caption and regions to a sample with hidden words and regions."""

    def __init__(self, settings: CaptionSettings) -> None:
        self.settings = settings
        self._mask_words = WordMasker(settings.tokenizer)

    @abstractmethod
    def caption(self, index: int) -> str: ...

    @abstractmethod
    def image_id(self, index: int) -> str:
        """What files about the image are named by (original 6.2)."""

    @abstractmethod
    def image_path(self, index: int) -> str: ...

    @abstractmethod
    def regions(self, index: int) -> Regions:
        """Boxes in original pixels in the order in which they are kept, class scores and, if precomputed, features."""

    @abstractmethod
    def image(self, index: int) -> Image.Image | None:
        """The image; None where it cannot be read and zeros may take its place."""

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Draws, in this order: flip, relationship (and another caption), each word, each region (original 5.1)."""
        settings = self.settings
        regions = self.regions(index)
        image = None if settings.precomputed else self.image(index)
        width, height = image.size if image is not None else self._size(regions, index)
        boxes = regions.boxes
        if settings.image_box:
            boxes, _ = with_image_box(boxes, None, None, width, height)
        state = settings.transform(image, boxes, torch.tensor([width, height, 1.0, 1.0]), None, rng)
        boxes = state.inside
        pixels = state.image
        if pixels is None and not settings.precomputed:
            pixels = torch.zeros(3, int(state.im_info[1]), int(state.im_info[0]))

        shown, matches = self._choose_caption(index, rng)
        text, labels = self._text(self.caption(shown), rng)
        ops, wanted = self._hidden(len(regions.boxes), rng)
        scores = regions.class_scores
        if settings.image_box:
            ops, wanted = [0, *ops], [False, *wanted]
        if pixels is not None and settings.mask_raw_pixels:
            blank_pixels(pixels, boxes[torch.tensor(ops) == 1])

        tokens, count = joint_lengths(len(text), len(boxes), settings.seq_len)
        text_ids = torch.tensor(cut_keeping_last(text, tokens))
        features = self._features(regions, ops, count) if settings.precomputed else None
        chosen = torch.tensor(wanted[:count], dtype=torch.bool)
        detected = chosen[int(settings.image_box) :].nonzero()[:, 0]  # rows of the scores
        return Sample(
            id=index,
            im_info=state.im_info,
            boxes=boxes[:count],
            image=pixels,
            features=features,
            text_ids=text_ids,
            segment_ids=torch.zeros_like(text_ids),
            targets={
                "relationship_label": torch.tensor(int(matches)),
                "mlm_labels": torch.tensor(cut_keeping_last(labels, tokens)),
                "mvrc_ops": torch.tensor(ops[:count]),
                "mvrc_mask": chosen,
                "mvrc_labels": torch.zeros(0, settings.num_classes) if scores is None else scores[detected],
            },
            target_pads={"mlm_labels": NO_LABEL},
        )

    def _size(self, regions: Regions, index: int) -> tuple[int, int]:
        if regions.width is None or regions.height is None:
            raise DataError(f"regions of caption {index + 1}: no image_w and image_h, which pretraining needs")
        return regions.width, regions.height

    def _choose_caption(self, index: int, rng: random.Random) -> tuple[int, bool]:
        """The number of the caption to show, and whether it belongs to the image."""
        if rng.random() < 0.5 or not self.settings.with_relationship:
            return index, True
        if len(self) == 1:
            raise DataError("NETWORK.WITH_REL_LOSS: a single caption has no other one to be taken for")
        while (other := rng.randrange(len(self))) == index:
            pass
        return other, False

    def _text(self, caption: str, rng: random.Random) -> tuple[list[int], list[int]]:
        """`[CLS] caption [SEP]` as ids, and the label of each."""
        tokenizer = self.settings.tokenizer
        if self.settings.with_mlm:
            ids, labels = self._mask_words(tokenizer.basic_tokenize(caption), rng)
        else:
            ids = tokenizer.ids(tokenizer.tokenize(caption))
            labels = [NO_LABEL] * len(ids)
        return [tokenizer.cls_id, *ids, tokenizer.sep_id], [NO_LABEL, *labels, NO_LABEL]

    def _hidden(self, count: int, rng: random.Random) -> tuple[list[int], list[bool]]:
        if self.settings.with_mvrc:
            return mask_regions(count, rng)
        return [0] * count, [False] * count

    def _features(self, regions: Regions, ops: list[int], count: int) -> Features:
        """[count, 2048], that of the whole image first. It is the mean of all regions that `ops` does not hide."""
        features = regions.features
        assert features is not None, "regions() checks this"
        if not self.settings.image_box:
            return select_features(features, range(count))
        shown = read_features(features)
        whole = shown.mean(0)
        if self.settings.with_mvrc:
            whole = image_feature_without(shown, torch.tensor(ops[1:]) == 1)
        return put_first(whole, select_features(features, range(count - 1)))


class ConceptualCaptions(CaptionDataset):
    """`<root>/<image_set>_frcnn.json`: a line for each pair, with image, caption (a list of words) and frcnn.

    frcnn names the detector's file of the image, "train_frcnn.zip@/00000000.json". It is looked up in the region
    store of that name (packed, folder or archive; see `open_regions`), or in `region_path`, by its stem or by the name
    of an image of this stem.
    Raises FileNotFoundError and DataError naming the line.
    """

    def __init__(
        self,
        root: Path | str,
        image_set: str,
        settings: CaptionSettings,
        region_path: str | None = None,
        zip_mode: bool = False,
    ) -> None:
        super().__init__(settings)
        self.root, self.region_path, self.zip_mode = Path(root), region_path, zip_mode
        self.lines = LineFile(self.root / f"{image_set}_frcnn.json")
        self._stores: dict[str, RegionStore] = {}
        self._readable: defaultdict[bool, int] = defaultdict(int)
        self.region_file(0)  # raises for a missing folder

    def __len__(self) -> int:
        return len(self.lines)

    def caption(self, index: int) -> str:
        words = self._record(index)["caption"]
        return words if isinstance(words, str) else " ".join(words)

    def regions(self, index: int) -> Regions:
        settings = self.settings
        store, name = self.region_file(index)
        regions = store.regions(name, with_features=settings.precomputed)
        where = f"{store.path}: {name}"
        if settings.precomputed and regions.features is None:
            raise DataError(f"{where} has no features, and NETWORK.IMAGE_FEAT_PRECOMPUTED is true")
        scores = regions.class_scores
        if scores is None:
            if settings.with_mvrc:
                raise DataError(
                    f"{where} has no classes, the targets of masked regions; set NETWORK.WITH_MVRC_LOSS false"
                )
            return regions
        if settings.with_mvrc and scores.shape[1] != settings.num_classes:
            raise DataError(
                f"{where} has {scores.shape[1]} classes, NETWORK.VLBERT.visual_region_classes is {settings.num_classes}"
            )
        # By the highest score, that of the background too, as in the release (original 5.3).
        order = torch.from_numpy(np.argsort(scores.max(dim=1).values.numpy())[::-1].copy())
        regions.boxes, regions.class_scores = regions.boxes[order], scores[order]
        if regions.attribute_scores is not None:
            regions.attribute_scores = regions.attribute_scores[order]
        if regions.features is not None:
            regions.features = select_features(regions.features, order)
        return regions

    def image(self, index: int) -> Image.Image | None:
        path = self.image_path(index)
        try:
            image = load_image(path)
        except (FileNotFoundError, ImageError) as error:
            self._readable[False] += 1
            if self._readable[False] == MANY and not self._readable[True]:
                raise DataError(f"none of the first {MANY} images could be read; the last one: {error}") from error
            log.warning("%s: zeros take its place (%d so far in this process)", error, self._readable[False])
            return None
        self._readable[True] += 1
        return image

    def image_id(self, index: int) -> str:
        return file_stem(self._record(index)["image"])

    def image_path(self, index: int) -> str:
        path = self._record(index)["image"]
        return f"{self.root}/{path if self.zip_mode else unpacked(path)}"

    def region_file(self, index: int) -> tuple[RegionStore, str]:
        """Returns the store of the detector's file of a record, and the name of the file in it."""
        return self._find(str(self._record(index)["frcnn"]))

    def _find(self, frcnn: str) -> tuple[RegionStore, str]:
        folder, name = split_region_path(frcnn, self.zip_mode)
        if self.region_path:
            folder, name = self.region_path, PurePosixPath(name).name
        if folder not in self._stores:
            path = folder if self.region_path else self.root / folder
            self._stores[folder] = open_regions(path, self.zip_mode)
        store = self._stores[folder]
        return store, stored_name(store, f"{name}.json", name)

    def _record(self, index: int) -> dict[str, Any]:
        return read_record(self.lines[index], f"{self.lines.path}: line {index + 1}")


class COCOCaptions(CaptionDataset):
    """COCO 2017: the first caption of each image that has instances, with their boxes; for looking at attention.

    Class scores are one-hot rows of 81: background and the categories in the order of the file. Images must be
    readable, and there are no precomputed features. Other than in the original, [SEP] survives truncation
    (original 5.15). Raises DataError for settings that these data cannot serve, and for damaged files.
    """

    def __init__(self, root: Path | str, image_set: str, settings: CaptionSettings, zip_mode: bool = False) -> None:
        super().__init__(settings)
        if settings.precomputed or settings.with_relationship:
            raise DataError("coco_captions has no NETWORK.IMAGE_FEAT_PRECOMPUTED and no NETWORK.WITH_REL_LOSS")
        self.root, self.zip_mode = Path(root), zip_mode
        self.folder = f"{image_set}2017"
        instances = self.root / "annotations" / f"instances_{self.folder}.json"
        content = read_json(instances, "COCO instances")
        categories = [c["id"] for c in list_under(content, "categories", instances)]
        self._label = {category: i + 1 for i, category in enumerate(categories)}
        if settings.with_mvrc and settings.num_classes != len(categories) + 1:
            raise DataError(
                f"coco_captions has {len(categories) + 1} classes, NETWORK.VLBERT.visual_region_classes is "
                f"{settings.num_classes}: set NETWORK.WITH_MVRC_LOSS false"
            )
        self._images = {image["id"]: image for image in list_under(content, "images", instances)}
        self._instances: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        for instance in list_under(content, "annotations", instances):
            self._instances[instance["image_id"]].append(instance)
        self.ids = sorted(i for i in self._images if self._instances.get(i))
        captions = self.root / "annotations" / f"captions_{self.folder}.json"
        self._captions: dict[int, str] = {}
        for row in list_under(read_json(captions, "COCO captions"), "annotations", captions):
            self._captions.setdefault(row["image_id"], row["caption"])
        missing = [i for i in self.ids if i not in self._captions]
        if missing or not self.ids:
            raise DataError(f"{captions}: no caption of image {missing[0] if missing else 'with instances'}")

    def __len__(self) -> int:
        return len(self.ids)

    def caption(self, index: int) -> str:
        return self._captions[self.ids[index]]

    def regions(self, index: int) -> Regions:
        image = self._images[self.ids[index]]
        rows = self._instances[image["id"]]
        corner, size = torch.tensor([row["bbox"] for row in rows]).float().split(2, dim=1)
        scores = torch.zeros(len(rows), len(self._label) + 1)
        scores[torch.arange(len(rows)), [self._label[row["category_id"]] for row in rows]] = 1.0
        boxes = torch.cat([corner, corner + (size - 1).clamp(min=0)], dim=1)
        return Regions(boxes, class_scores=scores, width=image["width"], height=image["height"])

    def image(self, index: int) -> Image.Image | None:
        return load_image(self.image_path(index))

    def image_id(self, index: int) -> str:
        return str(self.ids[index])

    def image_path(self, index: int) -> str:
        base = f"{self.folder}.zip@/{self.folder}" if self.zip_mode else self.folder
        return f"{self.root}/{base}/{self._images[self.ids[index]]['file_name']}"


class Subset(TaskDataset):
    """Some samples of a data set, which keep their ids."""

    def __init__(self, dataset: CaptionDataset, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, index: int, rng: random.Random) -> Sample:
        return self.dataset.sample(self.indices[index], rng)

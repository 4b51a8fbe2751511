"""Samples of VQA v2: a question about an image and its regions (original 9.7)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from common.config import Config
from common.config.derived import usable_positions
from common.data.build import build_transform
from common.data.dataset import TaskDataset
from common.data.sample import Sample
from common.data.text import BertTokenizer, join_segments, load_tokenizer, swap_left_right
from common.data.transforms import Transform
from common.errors import DataError
from common.regions.lazy_features import Features
from common.regions.names import stored_name
from common.regions.open import open_regions
from common.regions.regions import Regions, with_image_box
from vqa.annotations import BOX_SETS, Question, load_questions, parse_image_sets, read_list
from vqa.answers import AnswerVocabulary, soft_target

# Positions that a question cannot use: [CLS], [SEP], [MASK], [SEP], the regions' and END's.
RESERVED_POSITIONS = 6


@dataclass(frozen=True)
class VQAFiles:
    """Where the data of a split lie.

    root: DATASET_PATH. image_sets: names joined by +, see vqa/annotations.py. boxes: number of boxes an image, a key of
    BOX_SETS. region_path: folder, zip or packed store of the region files; None for the folder that `boxes` names.
    zip_mode: images and region files lie in zips. from_imdb: questions and answers come from imdb files.
    """

    root: Path
    image_sets: str
    boxes: str = "36"
    region_path: str | None = None
    zip_mode: bool = False
    from_imdb: bool = False


class VQADataset(TaskDataset):
    """Questions of one or several image sets.

    with_answers: whether samples have soft targets {"label": float32 [V]}. precomputed: region features from files
    instead of images. image_box: the whole image is region 0. max_positions: positions of the encoder's sequence.

    Raises FileNotFoundError and DataError for files that are missing or cannot be used.
    """

    def __init__(
        self,
        files: VQAFiles,
        vocabulary: AnswerVocabulary,
        tokenizer: BertTokenizer,
        transform: Transform,
        with_answers: bool = True,
        precomputed: bool = True,
        image_box: bool = True,
        max_positions: int = 512,
    ) -> None:
        if files.boxes not in BOX_SETS:
            raise DataError(f"DATASET.BOXES {files.boxes!r}: expected one of {', '.join(BOX_SETS)}")
        self.root, self.zip_mode = files.root, files.zip_mode
        self.image_sets = parse_image_sets(files.image_sets)
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer
        self.transform = transform
        self.with_answers = with_answers
        self.precomputed = precomputed
        self.image_box = image_box
        self.max_question = max_positions - RESERVED_POSITIONS
        self.questions: list[Question] = []
        for image_set in self.image_sets:
            self.questions += load_questions(self.root, image_set, with_answers, files.from_imdb)
        if not self.questions:
            raise DataError(f"image sets {files.image_sets!r} under {self.root} have no question")
        self._regions = {
            image_set: open_regions(
                files.region_path or self.root / image_set.region_folder(files.boxes), files.zip_mode
            )
            for image_set in self.image_sets
        }

    def __len__(self) -> int:
        return len(self.questions)

    def sample(self, index: int, rng: random.Random) -> Sample:
        question = self.questions[index]
        image_set = question.image_set
        path = self.image_path(question)
        store = self._regions[image_set]
        name = stored_name(store, path, str(question.image_id))
        regions = store.regions(name, with_features=self.precomputed)
        image = None if self.precomputed else self.image_cache.image(path)
        width, height = self.image_size(question) if image is None else image.size
        boxes, features = self._boxes(regions, width, height, question)
        im_info = torch.tensor([width, height, 1.0, 1.0])
        state = self.transform(None, boxes, im_info, None, rng)
        boxes = state.inside
        text_ids, segment_ids = self._text(question, state.flipped)
        return Sample(
            id=question.question_id,
            im_info=state.im_info,
            boxes=boxes,
            image=None if image is None else self.image_cache.pixels(path, image, state.flipped, self.transform),
            image_key=(question.image_id, state.flipped),
            features=features,
            text_ids=text_ids,
            segment_ids=segment_ids,
            targets={"label": self._target(question, state.flipped)} if self.with_answers else {},
        )

    @property
    def image_keys(self) -> Sequence[int] | None:
        return None if self.precomputed else [q.image_id for q in self.questions]

    @property
    def group_ids(self) -> Sequence[int]:
        sizes = (self.image_size(q) for q in self.questions)
        return [0 if width >= height else 1 for width, height in sizes]

    def image_path(self, question: Question) -> str:
        folder = question.image_set.images
        base = f"{folder}.zip@/{folder}" if self.zip_mode else folder
        return f"{self.root}/{base}/COCO_{folder}_{question.image_id:012d}.jpg"

    def image_size(self, question: Question) -> tuple[int, int]:
        """Width and height in pixels from the COCO metadata. Raises DataError for an image that they do not list."""
        sizes = self._sizes[question.image_set.metadata]
        if question.image_id not in sizes:
            path = self.root / question.image_set.metadata
            raise DataError(f"{path}: no image {question.image_id}, which question {question.question_id} asks about")
        return sizes[question.image_id]

    @cached_property
    def _sizes(self) -> dict[str, dict[int, tuple[int, int]]]:
        sizes = {}
        for file in {s.metadata for s in self.image_sets}:
            try:
                images = read_list(self.root / file, "images")
                sizes[file] = {image["id"]: (image["width"], image["height"]) for image in images}
            except (KeyError, TypeError) as error:
                raise DataError(f"{self.root / file}: an image needs id, width and height") from error
        return sizes

    def _boxes(self, regions: Regions, width: int, height: int, question: Question) -> tuple[Tensor, Features | None]:
        """Boxes [R, 4] in original pixels and features [R, 2048]; with `image_box` the whole image comes first."""
        boxes, features = regions.boxes, regions.features
        if self.precomputed and features is None:
            raise DataError(
                f"regions of image {question.image_id}: no features, NETWORK.IMAGE_FEAT_PRECOMPUTED is true"
            )
        if not self.image_box:
            return boxes, features
        return with_image_box(boxes, features, regions.image_feature, width, height)

    def _text(self, question: Question, flipped: bool) -> tuple[Tensor, Tensor]:
        """`[CLS] question [SEP] [MASK] [SEP]`; a flipped image swaps left and right."""
        words = question.text
        if isinstance(words, tuple):  # imdb: the swap is on words, before word pieces
            tokens = self.tokenizer.tokenize(" ".join(swap_left_right(words) if flipped else words))
        else:
            tokens = self.tokenizer.tokenize(words)
            tokens = swap_left_right(tokens) if flipped else tokens
        return question_sequence(self.tokenizer.real_ids(tokens)[: self.max_question], self.tokenizer)

    def _target(self, question: Question, flipped: bool) -> Tensor:
        answers: Sequence[str] = question.answers
        if flipped:
            answers = [" ".join(swap_left_right(a.split(" "))) for a in answers]
        return soft_target(answers, self.vocabulary)


def question_sequence(ids: list[int], tokenizer: BertTokenizer) -> tuple[Tensor, Tensor]:
    """Token ids [T] of `[CLS] question [SEP] [MASK] [SEP]` and segment ids [T], from the question's word-piece ids."""
    text_ids, segment_ids = join_segments([ids, [tokenizer.mask_id]], tokenizer.cls_id, tokenizer.sep_id)
    return torch.tensor(text_ids), torch.tensor(segment_ids)


def load_answers(cfg: Config) -> AnswerVocabulary:
    """The answer vocabulary of a config. Raises FileNotFoundError, and DataError for another ANSWER_VOCAB_SIZE."""
    dataset = cfg.DATASET
    vocabulary = AnswerVocabulary.load(dataset.ANSWER_VOCAB_FILE, processed=not dataset.USE_IMDB)
    if len(vocabulary) != dataset.ANSWER_VOCAB_SIZE:
        raise DataError(
            f"{dataset.ANSWER_VOCAB_FILE}: {len(vocabulary)} answers, "
            f"DATASET.ANSWER_VOCAB_SIZE is {dataset.ANSWER_VOCAB_SIZE}"
        )
    return vocabulary


def build_dataset(cfg: Config, split: str) -> VQADataset:
    """The dataset of a config for "train", "val" or "test"; test has no answers."""
    dataset = cfg.DATASET
    if dataset.DATASET != "vqa":
        raise DataError(f"DATASET.DATASET {dataset.DATASET!r}: this task has vqa")
    files = VQAFiles(
        Path(dataset.DATASET_PATH),
        dataset[f"{split.upper()}_IMAGE_SET"],
        boxes=dataset.BOXES,
        region_path=dataset.REGION_PATH or None,
        zip_mode=dataset.ZIP_MODE,
        from_imdb=dataset.USE_IMDB,
    )
    return VQADataset(
        files,
        load_answers(cfg),
        load_tokenizer(cfg.NETWORK.BERT_MODEL_NAME),
        build_transform(cfg, split),
        with_answers=split != "test",
        precomputed=cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED,
        image_box=dataset.ADD_IMAGE_AS_A_BOX,
        max_positions=usable_positions(cfg),
    )

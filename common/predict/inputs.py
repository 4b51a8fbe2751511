"""From an image, boxes and a text of a user to the Sample that the dataset of the task would make of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.config import Config, dataset_sections
from common.config.derived import usable_positions
from common.data.build import build_transform
from common.data.sample import Sample
from common.data.text import MASK, BertTokenizer, load_tokenizer
from common.data.transforms import Transform, resize_size
from common.errors import ImageError, InputError
from common.predict.prediction import Prepared, region_names
from common.predict.region_features import NEVER
from common.predict.user_images import UserImage, UserImages, whole_box


@dataclass(frozen=True)
class InputBuilder:
    """Makes samples of users' inputs.

    images: opens images and computes region features. transform: resizes images and boxes, without flips. image_box:
    whether the whole image is region 0. max_positions: positions that the encoder has for text, regions and END.
    """

    images: UserImages
    tokenizer: BertTokenizer
    transform: Transform
    image_box: bool
    max_positions: int

    @classmethod
    def from_config(cls, cfg: Config, images: UserImages, fixed_padding: bool = False) -> InputBuilder:
        """fixed_padding: images on a canvas of one size, as in the task's dataset."""
        return cls(
            images,
            load_tokenizer(cfg.NETWORK.BERT_MODEL_NAME),
            build_transform(cfg, fixed_padding=fixed_padding),
            dataset_sections(cfg)[0].ADD_IMAGE_AS_A_BOX,
            usable_positions(cfg),
        )

    def check_size(self, image: UserImage) -> None:
        """Raises ImageError for an image of which nothing is left after resizing, such as 1 x 3000 pixels."""
        size, scales = image.pixels.size, self.transform.scales
        if min(resize_size(*size, *scales)) < 1:
            raise ImageError(
                f"{image.path}: an image of {size[0]} x {size[1]} pixels is too narrow: its longer side becomes "
                f"{scales[1]} pixels, its shorter one none"
            )

    def single_text(
        self,
        image: UserImage,
        boxes: Any,
        asked: dict[str, Any],
        name: str,
        make_sequence: Callable[[list[int], BertTokenizer], tuple[Tensor, Tensor]],
        reserved: int,
    ) -> Prepared:
        """The input of a task with one text: the field `name` of `asked`.

        boxes: [R, 4] xyxy in pixels, or None for the boxes of the source. make_sequence: from word-piece ids to token
        ids [T] and segment ids [T]. reserved: positions that the text cannot use.
        Raises InputError and BoxError.
        """
        notes: list[str] = []
        ids = self.word_pieces(asked, name, reserved, notes)
        found = self.images.regions(image, boxes).boxes
        seen, features = self.encoder_regions(image, found)
        text_ids, segment_ids = make_sequence(ids, self.tokenizer)
        sample = self.sample(image, seen, features, text_ids=text_ids, segment_ids=segment_ids)
        return self.prepared(image, sample, seen, [text_ids.tolist()], asked, notes)

    def word_pieces(self, asked: Mapping[str, Any], name: str, reserved: int, notes: list[str]) -> list[int]:
        """Word-piece ids of the field `name`, cut to the positions of the encoder less `reserved`; a cut adds a note.

        Raises InputError for a value without any word.
        """
        ids = self.tokenizer.real_ids(self.tokenizer.tokenize(checked_text(asked[name], name)))
        if not ids:
            raise InputError(f"{name}: there is no word in it")
        room = self.max_positions - reserved
        if len(ids) > room:
            notes.append(f"{name} cut to its first {room} of {len(ids)} word pieces")
        return ids[:room]

    def encoder_regions(
        self,
        image: UserImage,
        boxes: Tensor,
        masks: Tensor | None = None,
        blanked: Tensor | None = None,
        whole: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Boxes [R, 4] and features [R, 2048] as the encoder gets them: with `image_box` the whole image comes first.

        boxes: [n, 4] in pixels of the image. masks, blanked: as in UserImages.region_features. whole: feature [2048] of
        the whole image. Without it the feature comes from the source of boxes; a source without features, masks or
        blanked boxes require that it is computed from the box of the whole image.
        The features are None for a model that takes no regions. Raises InputError if there is no box at all.
        """
        if not self.image_box:
            if not len(boxes):
                raise InputError("boxes: expected at least one, this model does not see the whole image as a box")
            return boxes, self._features(image, boxes, masks, blanked)
        seen = torch.cat([whole_box(image), boxes])
        if whole is None and masks is None and blanked is None:
            whole = self.images.stored_whole_feature(image, boxes)
        if whole is None:
            if masks is not None:
                masks = torch.cat([torch.ones(1, *masks.shape[1:]), masks])
            return seen, self._features(image, seen, masks, blanked)
        features = self._features(image, boxes, masks, blanked)
        return seen, None if features is None else torch.cat([whole[None], features])

    def sample(self, image: UserImage, boxes: Tensor, features: Tensor | None, **fields: Any) -> Sample:
        """boxes: [R, 4] in pixels of the image. features: [R, 2048]. fields: further fields of the Sample."""
        info = torch.tensor([*image.pixels.size, 1.0, 1.0])
        state = self.transform(None, boxes, info, None, NEVER)
        return Sample(id=image.name, im_info=state.im_info, boxes=state.inside, features=features, **fields)

    def prepared(
        self,
        image: UserImage,
        sample: Sample,
        boxes: Tensor,
        tokens: list[list[int]],
        asked: dict[str, Any],
        notes: list[str],
    ) -> Prepared:
        """The input with its boxes [R, 4] numbered from 1, the whole image apart."""
        names = region_names(len(boxes), self.image_box)
        return Prepared(sample, image.pixels.size, boxes, names, tokens, asked, notes)

    def _features(self, image: UserImage, boxes: Tensor, masks: Tensor | None, blanked: Tensor | None) -> Tensor | None:
        return self.images.region_features(image, boxes, masks, blanked) if self.images.extractor else None


def checked_text(value: Any, name: str) -> str:
    """A text with spaces around each [MASK]. Raises InputError, with the `name` of the field, for any other value, and
    for a text with a lone surrogate, which is no character."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name}: expected a text, got {_short(value)}")
    check_characters(value, name)
    return re.sub(re.escape(MASK), f" {MASK} ", value)


def check_characters(text: str, name: str) -> None:
    """Raises InputError for a lone surrogate, which JSON may hold as "\\ud800". name: of the field."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name}: character {error.start + 1} is the lone surrogate {ascii(text[error.start])[1:-1]}, no character"
        ) from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

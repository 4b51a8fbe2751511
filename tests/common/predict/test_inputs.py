"""Samples of users' inputs: word pieces, the whole image among the boxes, masks and blanked boxes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor

from common.data.text import BertTokenizer
from common.data.transforms import Transform
from common.errors import InputError
from common.predict.inputs import InputBuilder, checked_text
from common.predict.user_images import UserImages
from common.regions.box_sources import BoxSource
from common.regions.regions import FEATURE_DIM, Regions

VOCAB = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"])}
IMAGE = Image.new("RGB", (40, 20))
WHOLE = [0, 0, 39, 19]
BOXES = torch.tensor([[1.0, 2, 30, 10], [5, 5, 9, 9]])


class Extractor:
    """Features whose four first numbers are the box; one call a list entry."""

    def __init__(self) -> None:
        self.boxes: list[Tensor] = []
        self.masks: list[Tensor | None] = []
        self.blanked: list[Tensor | None] = []

    def __call__(self, images, boxes, masks=None, blanked=None):
        self.boxes.append(boxes[0])
        self.masks.append(masks and masks[0])
        self.blanked.append(blanked and blanked[0])
        return [boxes[0].repeat(1, FEATURE_DIM // 4)]


class Stored(BoxSource):
    def __init__(self, whole: Tensor | None) -> None:
        self.whole = whole

    def boxes(self, entry, image):
        return Regions(BOXES.clone(), torch.stack([torch.full((FEATURE_DIM,), x) for x in (1.0, 3.0)]), self.whole)


def builder(extractor: Extractor | None, image_box: bool = True, source: BoxSource | None = None) -> InputBuilder:
    transform = Transform((20, 40), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return InputBuilder(UserImages(extractor, source), BertTokenizer(VOCAB), transform, image_box, max_positions=9)


class TestWordPieces:
    def test_they_are_cut_to_the_positions_that_are_left(self):
        notes: list[str] = []
        ids = builder(None).word_pieces({"text": "a dog a dog a dog"}, "text", 4, notes)
        assert ids == [5, 6, 5, 6, 5] and notes == ["text cut to its first 5 of 6 word pieces"]
        assert builder(None).word_pieces({"text": "a dog a dog a"}, "text", 4, notes) == ids and len(notes) == 1

    def test_a_mask_is_set_apart(self):
        assert builder(None).word_pieces({"text": "a[MASK]dog [PAD]"}, "text", 0, []) == [5, 4, 6]  # no padding inside

    @pytest.mark.parametrize("value", ["", "  ", 7, None, ["a"]])
    def test_what_is_no_text_is_named(self, value):
        with pytest.raises(InputError, match="caption: expected a text, got"):
            checked_text(value, "caption")

    def test_a_text_of_control_characters_has_no_word(self):
        with pytest.raises(InputError, match="text: there is no word in it"):
            builder(None).word_pieces({"text": "\u200b"}, "text", 0, [])


class TestEncoderRegions:
    def test_the_whole_image_comes_first_in_one_call(self):
        inputs = builder(extractor := Extractor())
        boxes, features = inputs.encoder_regions(inputs.images.open(IMAGE), BOXES)
        assert boxes.tolist() == [WHOLE, *BOXES.tolist()]
        assert torch.equal(features[:, :4], boxes) and len(extractor.boxes) == 1

    def test_without_the_image_box_there_must_be_another(self):
        inputs = builder(Extractor(), image_box=False)
        image = inputs.images.open(IMAGE)
        assert torch.equal(inputs.encoder_regions(image, BOXES)[0], BOXES)
        with pytest.raises(InputError, match="boxes: expected at least one"):
            inputs.encoder_regions(image, BOXES[:0])

    def test_the_whole_image_has_no_outline(self):
        inputs = builder(extractor := Extractor())
        inputs.encoder_regions(inputs.images.open(IMAGE), BOXES, masks=torch.zeros(2, 3, 3))
        assert extractor.masks[0].flatten(1).tolist() == [[1] * 9, [0] * 9, [0] * 9]

    @pytest.mark.parametrize(("whole", "expected"), [(torch.full((FEATURE_DIM,), 7.0), 7), (None, 2)])
    def test_a_store_has_the_feature_of_the_whole_image_or_the_mean(self, whole, expected):
        inputs = builder(None, source=Stored(whole))
        image = inputs.images.open(IMAGE)
        found = inputs.images.regions(image).boxes
        inputs.images.extractor = extractor = Extractor()
        _, features = inputs.encoder_regions(image, found)
        assert features[:, 0].tolist() == [expected, 1, 3] and extractor.boxes == []

    def test_blanked_boxes_change_the_whole_image_too(self):
        inputs = builder(extractor := Extractor(), source=Stored(torch.zeros(FEATURE_DIM)))
        image = inputs.images.open(IMAGE)
        inputs.images.regions(image)
        inputs.encoder_regions(image, BOXES, blanked=BOXES[1:])
        assert torch.equal(extractor.boxes[0][0], torch.tensor(WHOLE)) and torch.equal(extractor.blanked[0], BOXES[1:])

    def test_with_outlines_the_feature_of_the_store_does_not_count(self):
        inputs = builder(extractor := Extractor(), source=Stored(torch.zeros(FEATURE_DIM)))
        image = inputs.images.open(IMAGE)
        inputs.images.regions(image)
        _, features = inputs.encoder_regions(image, BOXES, masks=torch.zeros(2, 3, 3))
        assert extractor.boxes[0][0].tolist() == WHOLE and features[0, :4].tolist() == WHOLE

    def test_a_given_feature_of_the_whole_image_is_taken(self):
        inputs = builder(extractor := Extractor())
        _, features = inputs.encoder_regions(inputs.images.open(IMAGE), BOXES, whole=torch.full((FEATURE_DIM,), 5.0))
        assert features[:, 0].tolist() == [5, 1, 5] and len(extractor.boxes[0]) == 2

    def test_a_model_without_regions_gets_boxes_alone(self):
        inputs = builder(None)
        boxes, features = inputs.encoder_regions(inputs.images.open(IMAGE), BOXES)
        assert len(boxes) == 3 and features is None

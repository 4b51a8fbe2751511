"""Made-up samples of VCR."""

from __future__ import annotations

import torch

from common.data.synthetic import FIRST_WORD
from tests.made_up import config, made_up_batch
from vcr.annotations import CATEGORIES, NUM_CHOICES

SEP = 102


def test_images_lie_on_one_canvas():
    """im_info keeps the size without the padding (original 4.6)."""
    batch = made_up_batch("vcr", config("vcr"), samples=6, image=(60, 120))
    assert batch.image.shape == (6, 3, 60, 120)
    widths = batch.im_info[:, 0].int().tolist()
    assert widths[0] == 120 and min(widths) < 120
    for image, width in zip(batch.image, widths, strict=True):
        assert not image[:, :, width:].any() and image[:, :, :width].all()


def test_pixels_are_normalised():
    """Means about 103 to 123 of 255, so half of 255 is slightly positive."""
    image = made_up_batch("vcr", config("vcr"), samples=1, image=(60, 120)).image
    assert image.min() > -124 and image.max() < 153 and 0 < image.mean() < 30


def test_choices_share_the_query():
    batch = made_up_batch("vcr", config("vcr"), samples=2, words=12)
    assert batch.text_ids.shape == (2, NUM_CHOICES, 15)
    ids, tags = batch.text_ids[0], batch.text_tags[0]
    assert (ids[:, :8] == ids[0, :8]).all() and (tags[:, :8] == tags[0, :8]).all()
    assert ids[0, 7] == SEP and not torch.equal(ids[0], ids[1])
    assert batch.segment_ids[0, 0].tolist() == [0] * 8 + [1] * 7


def test_some_words_name_a_detection():
    batch = made_up_batch("vcr", config("vcr"), samples=8, boxes=5)
    tags, boxes = batch.text_tags, batch.box_mask.sum(1)[:, None, None]
    assert not tags[batch.text_ids < FIRST_WORD].any() and (tags < boxes).all() and (tags >= 0).all()
    assert 0.05 < (tags > 0).sum() / batch.text_mask.sum() < 0.4


def test_boxes_have_a_category_and_a_mask():
    batch = made_up_batch("vcr", config("vcr"), samples=4, boxes=30)
    found = batch.box_mask[:, 1:]
    classes, masks = batch.box_classes[:, 1:][found], batch.box_masks[:, 1:][found]
    assert not batch.box_classes[:, 0].any() and (batch.box_masks[:, 0] == 1).all()
    assert classes.min() >= 1 and classes.max() < len(CATEGORIES) and classes.unique().numel() > 20
    assert masks.shape[1:] == (14, 14) and set(masks.unique().tolist()) == {0.0, 1.0}
    assert masks.mean((1, 2)).min() > 0.1 and masks.mean((1, 2)).max() < 0.9
    assert not batch.box_masks[~batch.box_mask].any()


def test_labels_are_choices():
    labels = made_up_batch("vcr", config("vcr"), samples=30, words=4, boxes=2).targets["label"]
    assert labels.dtype == torch.int64 and set(labels.tolist()) == set(range(NUM_CHOICES))


def test_rationales_are_longer_than_answers():
    answers = made_up_batch("vcr", config("vcr"), samples=1)
    rationales = made_up_batch("vcr", config("vcr", {"DATASET.TASK": "QA2R"}), samples=1)
    assert rationales.text_ids.shape[-1] > answers.text_ids.shape[-1]

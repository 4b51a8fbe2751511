"""Made-up samples of VQA."""

from __future__ import annotations

import pytest

from tests.made_up import config, made_up_batch

SEP = 102
MASK = 103


def test_the_mask_stands_before_the_last_separator():
    batch = made_up_batch("vqa", config("vqa"), samples=3)
    for ids, segments, length in zip(batch.text_ids, batch.segment_ids, batch.text_mask.sum(1), strict=True):
        assert ids[length - 3 : length].tolist() == [SEP, MASK, SEP]
        assert segments[:length].tolist() == [0] * (length - 2) + [1, 1]


def test_features_or_pixels_as_the_config_says():
    features = made_up_batch("vqa", config("vqa"))
    assert features.image is None and features.features.shape == (2, 100, 2048)
    pixels = made_up_batch("vqa", config("vqa", {"NETWORK.IMAGE_FEAT_PRECOMPUTED": False}))
    assert pixels.features is None and pixels.image.shape == (2, 3, 32, 48)


def test_up_to_three_answers_have_a_score():
    labels = made_up_batch("vqa", config("vqa"), samples=3).targets["label"]
    assert labels.shape == (3, 3129)
    assert [sorted(row[row > 0].tolist()) for row in labels] == [pytest.approx([0.3, 0.6, 1.0])] * 3
    few = made_up_batch("vqa", config("vqa", {"DATASET.ANSWER_VOCAB_SIZE": 2})).targets["label"]
    assert few.shape == (2, 2) and few[0].sum() == pytest.approx(1.6)

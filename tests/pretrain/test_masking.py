from __future__ import annotations

import random

import pytest
import torch

from common.data.text import BertTokenizer
from pretrain.masking import (
    WordMasker,
    cut_keeping_last,
    image_feature_without,
    joint_lengths,
    mask_regions,
)

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "cat", "play", "##ing", "##s"]


@pytest.fixture
def masker() -> WordMasker:
    return WordMasker(BertTokenizer({token: i for i, token in enumerate(VOCABULARY)}))


class TestWords:
    def test_the_numbers_of_the_original(self, masker):
        """Original 5.9."""
        ids, labels = masker(["the", "dog", "playing", "cats"] * 6, random.Random(7))
        masked = [4, 5, 8, 9, 12, 14, 15, 16, 17, 20, 21, 30, 34, 35]
        assert len(ids) == 36 and [i for i, label in enumerate(labels) if label != -1] == masked
        assert [VOCABULARY[ids[i]] for i in (20, 21)] == ["[SEP]", "##s"]
        assert all(ids[i] == labels[i] for i in (34, 35))
        assert all(ids[i] == 4 for i in masked[:9] + [30])

    def test_labels_put_back_give_the_text(self, masker):
        words = ["the", "dog", "playing", "zebra"]
        text = [5, 6, 8, 9, 1]  # a word outside the vocabulary keeps the id of [UNK] as its label
        for seed in range(50):
            ids, labels = masker(words, random.Random(seed))
            assert [i if label == -1 else label for i, label in zip(ids, labels, strict=True)] == text
            assert (labels[2] == -1) == (labels[3] == -1)  # whole words

    def test_shares(self, masker):
        ids, labels = masker(["the"] * 20_000, random.Random(0))
        chosen = [i for i, label in zip(ids, labels, strict=True) if label != -1]
        assert len(chosen) / 20_000 == pytest.approx(0.15, abs=0.011)
        # One in eleven random replacements is the word itself.
        assert chosen.count(4) / len(chosen) == pytest.approx(0.8 + 0.1 / 10, abs=0.03)
        assert chosen.count(5) / len(chosen) == pytest.approx(0.1 + 0.1 / 10, abs=0.025)

    def test_padding_never_takes_the_place_of_a_word(self, masker):
        """It would leave a hole that shifts all later words against their labels (original 5.10)."""
        ids, _ = masker(["the"] * 50_000, random.Random(1))
        assert 0 not in ids and {1, 2, 3, 6, 7, 8, 9, 10} <= set(ids)


class TestRegions:
    def test_the_numbers_of_the_original(self):
        """Original 5.11."""
        ops, wanted = mask_regions(30, random.Random(11))
        assert [i for i, op in enumerate(ops) if op] == [10, 12, 15, 21, 23, 26]
        assert [i for i, want in enumerate(wanted) if want] == [10, 12, 15, 21, 23, 26]

    def test_shares(self):
        ops, wanted = mask_regions(20_000, random.Random(0))
        assert sum(wanted) / 20_000 == pytest.approx(0.15, abs=0.011)
        assert sum(ops) / sum(wanted) == pytest.approx(0.9, abs=0.025)
        assert all(want for op, want in zip(ops, wanted, strict=True) if op)

    def test_the_image_does_not_know_what_is_hidden(self):
        features = torch.rand(5, 2048)
        masked = torch.tensor([True, False, False, True, False])
        torch.testing.assert_close(
            image_feature_without(features, masked), features[~masked].mean(0), rtol=1e-4, atol=0
        )
        nothing = torch.zeros(5, dtype=torch.bool)
        torch.testing.assert_close(image_feature_without(features, nothing), features.mean(0), rtol=1e-4, atol=0)
        assert not image_feature_without(features, ~nothing).abs().max() > 1  # nothing is left: no division by zero


class TestLength:
    @pytest.mark.parametrize(
        ("tokens", "boxes", "limit", "expected"),
        [
            (11, 61, 64, (11, 53)),
            (30, 101, 64, (30, 34)),
            (40, 40, 64, (32, 32)),
            (33, 32, 64, (32, 32)),
            (70, 11, 64, (53, 11)),
            (20, 44, 64, (20, 44)),
            (80, 101, 64, (32, 32)),
            (5, 5, 2, (2, 1)),
            (6, 1, 3, (2, 1)),
        ],
    )
    def test_the_numbers_of_the_original(self, tokens, boxes, limit, expected):
        """Original 5.8."""
        assert joint_lengths(tokens, boxes, limit) == expected

    def test_one_by_one(self):
        """As the rule is told: strictly more boxes lose a box, else the text loses a token."""
        for tokens in range(2, 30):
            for boxes in range(1, 30):
                for limit in range(60):
                    t, b = tokens, boxes
                    while t + b > limit:
                        t, b = (t, b - 1) if b > t else (t - 1, b)
                    assert joint_lengths(tokens, boxes, limit) == (max(t, 2), max(b, 1))

    def test_the_last_token_stays(self):
        assert cut_keeping_last([1, 2, 3, 4, 5], 3) == [1, 2, 5]
        assert cut_keeping_last([1, 2, 3], 3) == cut_keeping_last([1, 2, 3], 9) == [1, 2, 3]

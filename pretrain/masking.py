"""Masking of words and regions, and truncation of a sample (paper §3.3; original 5.6 to 5.11)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

from common.data.text import MASK, BertTokenizer

MASKED = 0.15  # of words and of regions
NO_LABEL = -1

T = TypeVar("T")


class WordMasker:
    """Masks whole words. The label of each piece of a chosen word is its id before masking (original 5.9).

    The pieces of a chosen word become [MASK] (80 %), random pieces (10 %), or do not change (10 %).
    """

    def __init__(self, tokenizer: BertTokenizer) -> None:
        self.tokenizer = tokenizer
        self.pool = list(tokenizer.vocab)  # in the order of the file

    def __call__(self, words: Sequence[str], rng: random.Random) -> tuple[list[int], list[int]]:
        """Ids and labels of the pieces of `words` (of `basic_tokenize`). The label -1 is no target."""
        pieces: list[str] = []
        labels: list[int] = []
        for word in words:
            own = self.tokenizer.wordpiece(word)
            draw = rng.random()
            if draw >= MASKED:
                pieces += own
                labels += [NO_LABEL] * len(own)
                continue
            labels += self.tokenizer.ids(own)
            kind = draw / MASKED
            if kind < 0.8:
                pieces += [MASK] * len(own)
            elif kind < 0.9:
                pieces += [self._other(rng) for _ in own]
            else:
                pieces += own
        return self.tokenizer.ids(pieces), labels

    def _other(self, rng: random.Random) -> str:
        """A random entry of the vocabulary but padding, which would be masked out of the text (original 5.10)."""
        while self.tokenizer.vocab[piece := rng.choice(self.pool)] == self.tokenizer.pad_id:
            pass
        return piece


def mask_regions(count: int, rng: random.Random) -> tuple[list[int], list[bool]]:
    """For each of `count` regions: 1 if it is hidden, else 0, and whether it is a target (original 5.11)."""
    ops, wanted = [], []
    for _ in range(count):
        draw = rng.random()
        wanted.append(draw < MASKED)
        ops.append(int(draw / MASKED < 0.9))
    return ops, wanted


def image_feature_without(features: Tensor, masked: Tensor) -> Tensor:
    """The feature [2048] of the whole image: the mean of those features [R, 2048] that are not masked.

    masked: bool [R]. The denominator has the original's small constant (original 5.6).
    """
    kept = len(features) - int(masked.sum())
    return (len(features) * features.mean(0) - features[masked].sum(0)) / (kept + 1e-5)


def joint_lengths(tokens: int, boxes: int, limit: int) -> tuple[int, int]:
    """Numbers of tokens and boxes to keep, together at most `limit` (original 5.8).

    The longer side loses one entry at a time; of a tie, the text does. At least 2 tokens and 1 box stay.
    """
    over = max(0, tokens + boxes - limit)
    # First the longer side is cut to the length of the other one, then both in turn, the text first.
    first = min(over, abs(tokens - boxes))
    if boxes > tokens:
        boxes -= first
    else:
        tokens -= first
    over -= first
    tokens -= -(-over // 2)
    boxes -= over // 2
    return max(tokens, 2), max(boxes, 1)


def cut_keeping_last(items: Sequence[T], length: int) -> list[T]:
    """The first length - 1 items and the last one."""
    return [*items[: length - 1], items[-1]] if len(items) > length else list(items)

"""Which words and regions of a sample are hidden, and how a sample is cut to length (paper §3.3; spec 10 §9)."""

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
    """Hides whole words: all pieces of a chosen word have a label, its id before masking (spec 10 §9.5).

    A chosen word becomes [MASK] (80 %), other pieces (10 %), or stays (10 %).
    """

    def __init__(self, tokenizer: BertTokenizer) -> None:
        self.tokenizer = tokenizer
        self.pool = list(tokenizer.vocab)  # in the order of the file

    def __call__(self, words: Sequence[str], rng: random.Random) -> tuple[list[int], list[int]]:
        """words: of `basic_tokenize`. -> ids and labels of their pieces; label -1 where there is nothing to predict."""
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
        """Any entry of the vocabulary but padding, which would leave a hole in the text (spec 10 P-6)."""
        while self.tokenizer.vocab[piece := rng.choice(self.pool)] == self.tokenizer.pad_id:
            pass
        return piece


def mask_regions(count: int, rng: random.Random) -> tuple[list[int], list[bool]]:
    """For each of `count` regions: 1 where it is hidden, and whether it is to be predicted (spec 10 §9.6)."""
    ops, wanted = [], []
    for _ in range(count):
        draw = rng.random()
        wanted.append(draw < MASKED)
        ops.append(int(draw / MASKED < 0.9))
    return ops, wanted


def image_feature_without(features: Tensor, masked: Tensor) -> Tensor:
    """The feature [2048] of the whole image: the mean of features [R, 2048] as if the masked ones were not there.

    masked: bool [R]. In the original's form, with its small number in the denominator (spec 10 §9.2 step 8).
    """
    kept = len(features) - int(masked.sum())
    return (len(features) * features.mean(0) - features[masked].sum(0)) / (kept + 1e-5)


def joint_lengths(tokens: int, boxes: int, limit: int) -> tuple[int, int]:
    """How many tokens and boxes of a sample stay so that together they are at most `limit` (spec 10 §9.2 step 11).

    The longer side gives way one by one, a tie takes a token; 2 tokens and 1 box stay in any case.
    """
    over = max(0, tokens + boxes - limit)
    # First the longer side comes down to the shorter one, then they go in turn: of a tie the text goes first.
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

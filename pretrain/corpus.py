"""Plain text for pretraining, from lines of large text files (original 5.12)."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch

from common.data.dataset import TaskDataset
from common.data.sample import Sample
from common.data.text import BertTokenizer
from common.errors import DataError
from common.files.lines import LineFile
from pretrain.masking import NO_LABEL, WordMasker

EMPTY_LINES = 1000  # consecutive lines without a token, which a file of text does not have


class GeneralCorpus(TaskDataset):
    """One sample for each line of the concatenated text files.

    paths: UTF-8 files, one sentence or paragraph a line. seq_len: largest number of word pieces of a sample.
    min_seq_len: a line with fewer words and punctuation marks is joined with the next ones; the first line follows the
    last one. mask: whether words are masked.
    A sample has no [CLS], no [SEP] and no regions. The text is not held in memory.
    """

    def __init__(
        self,
        paths: Sequence[Path | str],
        tokenizer: BertTokenizer,
        seq_len: int = 64,
        min_seq_len: int = 0,
        mask: bool = True,
    ) -> None:
        self.files = [LineFile(path) for path in paths]
        self.tokenizer, self.seq_len, self.min_seq_len = tokenizer, seq_len, min_seq_len
        self._ends = list(accumulate(map(len, self.files)))
        self._mask = WordMasker(tokenizer) if mask else None

    def __len__(self) -> int:
        return self._ends[-1]

    def line(self, number: int) -> str:
        """Line `number` of all files, not counting blank lines."""
        file = bisect_right(self._ends, number)
        return self.files[file][number - (self._ends[file - 1] if file else 0)]

    def sample(self, index: int, rng: random.Random) -> Sample:
        words = self._words(index)
        if self._mask is not None:
            ids, labels = self._mask(words, rng)
        else:
            ids = self.tokenizer.ids([piece for word in words for piece in self.tokenizer.wordpiece(word)])
            labels = [NO_LABEL] * len(ids)
        text = torch.tensor(ids[: self.seq_len], dtype=torch.int64)
        return Sample(
            id=index,
            im_info=torch.zeros(4),
            boxes=torch.zeros(0, 4),
            text_ids=text,
            segment_ids=torch.zeros_like(text),
            targets={"mlm_labels": torch.tensor(labels[: self.seq_len], dtype=torch.int64)},
            target_pads={"mlm_labels": NO_LABEL},
        )

    def _words(self, index: int) -> list[str]:
        words = self.tokenizer.basic_tokenize(self.line(index))
        following, empty = index, 0
        while len(words) < self.min_seq_len:
            following = (following + 1) % len(self)
            more = self.tokenizer.basic_tokenize(self.line(following))
            words += more
            empty = 0 if more else empty + 1
            if empty >= min(EMPTY_LINES, len(self)):
                raise DataError(
                    f"{self.files[0].path}: {empty} lines from number {index + 1} on hold no word; "
                    f"DATASET.MIN_SEQ_LEN {self.min_seq_len} cannot be reached"
                )
        return words

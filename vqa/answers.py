"""The answer vocabulary of VQA v2, and soft targets from the answers of ten annotators."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import DataError
from common.files.text import read_text

UNKNOWN = "<unk>"
MARKS = (";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The official evaluation passes re.UNICODE, which is 32, in the place of a count.
_MAX_PERIODS = 32


def remove_punctuation(text: str) -> str:
    """The punctuation rule of the official VQA evaluation. Keeps spaces, case, apostrophes and decimal points.

    A mark that is next to a space anywhere in the text is deleted everywhere. Other marks become spaces. If the text
    has a comma between digits, all marks are deleted.
    """
    comma = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in MARKS:
        deleted = comma or mark + " " in text or " " + mark in text
        out = out.replace(mark, "" if deleted else " ")
    return _PERIOD.sub("", out, count=_MAX_PERIODS)


def process_punctuation(text: str) -> str:
    """`remove_punctuation` for an entry of the vocabulary. Does not change `<unk>`."""
    return text if text == UNKNOWN else remove_punctuation(text)


class AnswerVocabulary:
    """Answers by index. Of equal entries the first is the target; the others keep their index.

    Raises DataError without the entry `<unk>`.
    """

    def __init__(self, answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self._index: dict[str, int] = {}
        for i, answer in enumerate(self.answers):
            self._index.setdefault(answer, i)
        if UNKNOWN not in self._index:
            raise DataError(f"the answer vocabulary ({len(self.answers)} entries) has no entry {UNKNOWN}")
        self.unk_index = self._index[UNKNOWN]

    @classmethod
    def load(cls, path: str | Path, processed: bool = True) -> AnswerVocabulary:
        """Read one answer a line, in lower case and stripped, without empty lines.

        processed: apply `process_punctuation`, as for all data but imdb files. The annotators' answers are looked up
        unprocessed. Raises FileNotFoundError, and DataError without the entry `<unk>` and for a file that is no text.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"answer vocabulary {path} (DATASET.ANSWER_VOCAB_FILE): no such file")
        lines = [line.strip() for line in read_text(path, "one answer a line").lower().split("\n")]
        answers = [line for line in lines if line]
        try:
            return cls([process_punctuation(answer) for answer in answers] if processed else answers)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> str:
        return self.answers[index]

    def index(self, answer: str) -> int:
        """Index of an answer; for an unknown answer, the index of `<unk>`."""
        return self._index.get(answer, self.unk_index)


def soft_target(answers: Sequence[str], vocabulary: AnswerVocabulary) -> Tensor:
    """float32 [len(vocabulary)]: the accuracy of each given answer, averaged over the subsets without one annotator.

    Annotators with answers outside the vocabulary count, but `<unk>` is never a target.
    """
    n = len(answers)
    target = np.zeros(len(vocabulary), np.float32)  # single numbers are set much faster in an array than in a tensor
    for i, count in Counter(vocabulary.index(answer) for answer in answers).items():
        if i != vocabulary.unk_index:
            left_out, kept = min(1.0, (count - 1) / 3), min(1.0, count / 3)
            target[i] = (count * left_out + (n - count) * kept) / n
    return torch.from_numpy(target)

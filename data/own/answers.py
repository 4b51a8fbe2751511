"""The answers of a record of VQA, as those of ten annotators.

They are a text, a list with one answer for each annotator, or an object with a score in [0, 1] for each answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

ANNOTATORS = 10  # of a question of VQA v2, whose accuracy is the target
SCORES = (0.0, 0.3, 0.6, 0.9)  # of an answer that 0, 1, 2 or 3 of ten annotators gave; from 4 on it is 1


def annotators_answers(given: Any, clean: Callable[[str], str]) -> tuple[str, ...]:
    """Returns the answers of ten annotators or more, whose VQA accuracy is nearest to what is given.

    Fewer than ten given answers are repeated to ten, in their shares. Scores are rounded to those that the accuracy can
    have: 0, 0.3, 0.6, 0.9 and 1. Raises ValueError.
    """
    if isinstance(given, str):
        given = [given]
    if isinstance(given, Mapping):
        counts = _score_counts(given, clean)
    elif isinstance(given, list) and given and all(isinstance(answer, str) for answer in given):
        counts = _shares(Counter(_cleaned(answer, clean) for answer in given))
    else:
        raise ValueError(f"answers must be a text, a list of texts or an object of scores, got {given!r:.80}")
    answers = list(counts.elements())
    return (*answers, *[""] * (ANNOTATORS - len(answers)))


def _cleaned(answer: str, clean: Callable[[str], str]) -> str:
    if not (cleaned := clean(answer)):
        raise ValueError(f"answer {answer!r:.80} is empty without its punctuation")
    return cleaned


def _score_counts(given: Mapping[str, Any], clean: Callable[[str], str]) -> Counter[str]:
    if not given:
        raise ValueError("answers has no answer")
    counts: Counter[str] = Counter()
    for answer, score in given.items():
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise ValueError(f"the score of answer {answer!r:.80} must be a number from 0 to 1, got {score!r:.80}")
        counts[_cleaned(answer, clean)] += min(range(5), key=lambda n: abs((*SCORES, 1.0)[n] - score))
    if not counts.total():
        raise ValueError("all scores are nearest to 0")
    return counts


def _shares(counts: Counter[str]) -> Counter[str]:
    """Returns ten answers in the given shares, by largest remainders; ten or more answers stay as they are."""
    total = counts.total()
    if total >= ANNOTATORS:
        return counts
    shares = Counter({answer: count * ANNOTATORS // total for answer, count in counts.items()})
    by_remainder = sorted(counts, key=lambda answer: -(counts[answer] * ANNOTATORS % total))
    shares.update(by_remainder[: ANNOTATORS - shares.total()])
    return shares

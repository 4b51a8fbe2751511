"""A record of VQA: an image, a text, and its answers.

{"id": 7, "image": "a/x.jpg", "boxes": [[x1, y1, x2, y2]], "question": "what colour?", "answers": ["red", "dark red"]}

`answers` is a text, a list with one answer for each annotator, or an object with a score in [0, 1] for each answer.
`id` and `boxes` are optional. A CSV has the columns image, text and label, or those of the record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.own.lines import Line, Problems

KEYS = ("id", "image", "question", "answers", "boxes")
COLUMNS = {"text": "question", "label": "answers"}  # of a CSV
ANNOTATORS = 10  # of a question of VQA v2, whose accuracy is the target
SCORES = (0.0, 0.3, 0.6, 0.9)  # of an answer that 0, 1, 2 or 3 of ten annotators gave; from 4 on it is 1


@dataclass(frozen=True)
class Question:
    """answers: those of ten annotators or more; none without the key. boxes: xyxy, None without the key."""

    line: Line
    id: str | int | None
    image: str
    text: str
    answers: tuple[str, ...]
    boxes: tuple[tuple[float, ...], ...] | None


def read_question(line: Line, clean: Callable[[str], str], with_answers: bool, problems: Problems) -> Question:
    """Returns the question of a line. Adds a problem for every field that cannot be used.

    clean: the answer as the answer list has it, "" for one that has nothing.
    """
    fields = {COLUMNS.get(key, key) if line.file.suffix.lower() == ".csv" else key: v for key, v in line.fields.items()}
    for key in ("image", "question"):
        if not isinstance(fields.get(key), str) or not fields[key].strip():
            problems.add(line, f"{key} must be a text, got {fields.get(key)!r:.80}")
    answers: tuple[str, ...] = ()
    boxes = None
    number = fields.get("id")
    if number is not None and (isinstance(number, bool) or not isinstance(number, str | int)):
        problems.add(line, f"id must be a text or an integer, got {number!r:.80}")
    try:
        if "answers" in fields:
            answers = annotators_answers(fields["answers"], clean)
        elif with_answers:
            raise ValueError("no answers")
    except ValueError as error:
        problems.add(line, error)
    try:
        boxes = read_boxes(fields["boxes"]) if "boxes" in fields else None
    except ValueError as error:
        problems.add(line, error)
    return Question(line, number, str(fields.get("image", "")), str(fields.get("question", "")), answers, boxes)


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


def read_boxes(given: Any) -> tuple[tuple[float, ...], ...]:
    """Returns boxes xyxy. Raises ValueError."""
    if not isinstance(given, list) or not given:
        raise ValueError(f"boxes must be a list of [x1, y1, x2, y2], got {given!r:.80}")
    return tuple(_read_box(box) for box in given)


def _read_box(box: Any) -> tuple[float, ...]:
    if not isinstance(box, Sequence) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        raise ValueError(f"a box must be [x1, y1, x2, y2] in pixels, got {box!r:.80}")
    x1, y1, x2, y2 = map(float, box)
    if not (0 <= x1 < x2 < float("inf") and 0 <= y1 < y2 < float("inf")):
        raise ValueError(f"a box must have 0 <= x1 < x2 and 0 <= y1 < y2, got {box!r:.80}")
    return x1, y1, x2, y2

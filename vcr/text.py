"""Text of VCR: names of detections, tokens with tags, truncation (original 8.2 to 8.5).

A mixed token is a word, or a list of detections that it refers to (0-based).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from common.data.text import BertTokenizer

GENDER_NEUTRAL_NAMES = (
    "Casey",
    "Riley",
    "Jessie",
    "Jackie",
    "Avery",
    "Jaime",
    "Peyton",
    "Kerry",
    "Jody",
    "Kendall",
    "Frankie",
    "Pat",
    "Quinn",
)
PERSON = "person"
Q2A, QA2R = "Q2A", "QA2R"  # question to answer; question and answer to rationale
MAX_TOKENS = 64  # word pieces of query and choice together, without special tokens

MixedToken = str | list[int]


class TaggedToken(NamedTuple):
    """id: in the vocabulary. tag: number of its box in the sample. align: number of its word."""

    id: int
    tag: int
    align: int


class RelevantDetections(NamedTuple):
    """keep: old numbers of the kept detections, in the order of first mention. The texts have the new numbers."""

    keep: list[int]
    question: list[MixedToken]
    answers: list[list[MixedToken]]
    rationales: list[list[MixedToken]] | None


class Query(NamedTuple):
    """Truncated texts. answer: the right answer in QA -> R; None in Q -> A, where the answers are the choices."""

    question: list[TaggedToken]
    answer: list[TaggedToken] | None
    choices: list[list[TaggedToken]]


def keep_relevant_detections(
    question: Sequence[MixedToken],
    answers: Sequence[Sequence[MixedToken]],
    rationales: Sequence[Sequence[MixedToken]] | None,
) -> RelevantDetections:
    """The detections that the texts mention, renumbered by first mention (original 8.2).

    rationales: None in Q -> A, which does not scan them. The arguments do not change.
    """
    new_number: dict[int, int] = {}

    def renumber(tokens: Sequence[MixedToken]) -> list[MixedToken]:
        return [t if isinstance(t, str) else [new_number.setdefault(o, len(new_number)) for o in t] for t in tokens]

    new_question = renumber(question)
    new_answers = [renumber(answer) for answer in answers]
    new_rationales = None if rationales is None else [renumber(rationale) for rationale in rationales]
    return RelevantDetections(list(new_number), new_question, new_answers, new_rationales)


def replacement_names(objects: Sequence[str], start: int = 0) -> list[str]:
    """The name of each detection in texts: the next neutral name for a person, the category for others.

    start: number of the first name, modulo the number of names. The next image of a stream starts at
    `start + objects.count("person")` (original 8.3).
    """
    names, person = [], start
    for category in objects:
        if category == PERSON:
            names.append(GENDER_NEUTRAL_NAMES[person % len(GENDER_NEUTRAL_NAMES)])
            person += 1
        else:
            names.append(category)
    return names


def tokenize_with_tags(
    tokens: Sequence[MixedToken], names: Sequence[str], tokenizer: BertTokenizer, basic_align: bool, non_object_tag: int
) -> list[TaggedToken]:
    """Word pieces of a mixed text (original 8.4).

    names: one for each detection. basic_align: punctuation inside a word gets an alignment number of its own.
    non_object_tag: the tag of words, 0 if box 0 is the whole image, else -1. Detection o has the tag
    `non_object_tag + 1 + o`.
    """
    words: list[tuple[list[str], int]] = []  # pieces and tag of each word, in alignment order
    for token in tokens:
        if isinstance(token, str):
            parts = tokenizer.basic_tokenize(token) if basic_align else [token]
            words += [(tokenizer.tokenize(part), non_object_tag) for part in parts]
            continue
        for position, detection in enumerate(token):
            if position:
                words.append((["and"], non_object_tag))
            words.append((tokenizer.tokenize(names[detection]), non_object_tag + 1 + detection))
    return [
        TaggedToken(piece_id, tag, align)
        for align, (pieces, tag) in enumerate(words)
        for piece_id in tokenizer.ids(pieces)
    ]


def truncate_q2a(
    question: Sequence[TaggedToken], answers: Sequence[Sequence[TaggedToken]], limit: int = MAX_TOKENS
) -> Query:
    """Question and answers, cut at their ends until each pair has at most `limit` tokens (original 8.5).

    All answers share the question. A cut of the question for one answer applies to the answers after it, too. An answer
    is cut while it is longer than the question.
    """
    nq, lengths = len(question), []
    for answer in answers:
        na = len(answer)
        while nq + na > limit:
            if na > nq:
                na -= 1
            else:
                nq -= 1
        lengths.append(na)
    return Query(list(question[:nq]), None, _cut(answers, lengths))


def truncate_qa2r(
    question: Sequence[TaggedToken],
    answer: Sequence[TaggedToken],
    rationales: Sequence[Sequence[TaggedToken]],
    limit: int = MAX_TOKENS,
) -> Query:
    """`truncate_q2a` for question, right answer and rationales. The query loses its question first, but one token."""
    nq, na, lengths = len(question), len(answer), []
    for rationale in rationales:
        nr = len(rationale)
        while nq + na + nr > limit:
            if nr > nq + na:
                nr -= 1
            elif nq > 1:
                nq -= 1
            else:
                na -= 1
        lengths.append(nr)
    return Query(list(question[:nq]), list(answer[:na]), _cut(rationales, lengths))


def _cut(choices: Sequence[Sequence[TaggedToken]], lengths: Sequence[int]) -> list[list[TaggedToken]]:
    return [list(choice[:length]) for choice, length in zip(choices, lengths, strict=True)]

"""Rows of text of a VCR question: the query with every choice (spec 20 §2 and 5.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.data.text import BertTokenizer, join_segments
from common.errors import DataError
from vcr.annotations import Annotation, Text
from vcr.text import (
    MAX_TOKENS,
    Q2A,
    Query,
    TaggedToken,
    keep_relevant_detections,
    tokenize_with_tags,
    truncate_q2a,
    truncate_qa2r,
)

ANSWER_FIRST, ONE_SENTENCE = "answer first", "one sentence"


@dataclass(frozen=True)
class RowBuilder:
    """How the texts of a question become rows of word pieces.

    task: Q2A or QA2R. layout: "" is [CLS] query [SEP] choice [SEP]; ANSWER_FIRST and ONE_SENTENCE as in spec 20 §5.3.
    image_box: the whole image is box 0 and the region of words; else words are tied to detection 0. relevant_only:
    leave out detections that no text mentions. basic_align: see `tokenize_with_tags`. no_question: the query of QA2R
    is the answer alone. seq_len: most word pieces of query and choice. max_row: most tokens of a row.
    """

    tokenizer: BertTokenizer
    task: str = Q2A
    layout: str = ""
    image_box: bool = True
    relevant_only: bool = False
    basic_align: bool = False
    no_question: bool = False
    seq_len: int = MAX_TOKENS
    max_row: int = 510

    def relevant(self, annotation: Annotation) -> tuple[Annotation, list[int]]:
        """The annotation with the detections that are used, and their old numbers (spec 20 §2.1)."""
        if not self.relevant_only:
            return annotation, list(range(len(annotation.objects)))
        rationales = None if self.task == Q2A else annotation.rationales
        kept = keep_relevant_detections(annotation.question, annotation.answers, rationales)
        changed = replace(
            annotation,
            objects=[annotation.objects[i] for i in kept.keep],
            question=kept.question,
            answers=kept.answers,
            rationales=kept.rationales or [],
        )
        return changed, kept.keep

    def queries(self, annotation: Annotation, names: Sequence[str]) -> list[Query]:
        """The truncated texts of a question: one query, or one for each answer where QA2R has no labels.

        annotation: as `relevant` gives it. names: what each of its detections is called.
        """
        question = self._tokens(annotation, annotation.question, names, "question")
        answers = self._all_tokens(annotation, annotation.answers, names, "answer_choices")
        if self.task == Q2A:
            return [truncate_q2a(question, answers, self.seq_len)]
        rationales = self._all_tokens(annotation, annotation.rationales, names, "rationale_choices")
        if annotation.answer_label is None:
            return [Query(question, answer, rationales) for answer in answers]
        return [truncate_qa2r(question, answers[annotation.answer_label], rationales, self.seq_len)]

    def _all_tokens(
        self, annotation: Annotation, texts: Sequence[Text], names: Sequence[str], key: str
    ) -> list[list[TaggedToken]]:
        return [self._tokens(annotation, text, names, f"{key}[{i}]") for i, text in enumerate(texts)]

    def _tokens(self, annotation: Annotation, text: Text, names: Sequence[str], key: str) -> list[TaggedToken]:
        tokens = tokenize_with_tags(text, names, self.tokenizer, self.basic_align, 0 if self.image_box else -1)
        if not tokens:
            raise DataError(f"{annotation.where}: {key} has no word piece: {text}")
        return tokens

    def build(self, annotation: Annotation, queries: Sequence[Query]) -> list[tuple[list[int], list[int], list[int]]]:
        """(ids, segment ids, tags) of every query with every choice."""
        rows = []
        for query in queries:
            first = [] if query.answer is not None and self.no_question else query.question
            both = [*first, *(query.answer or [])]
            rows += [self._row(both, choice) for choice in query.choices]
        longest = max(len(ids) for ids, _, _ in rows)
        if longest > self.max_row:
            raise DataError(
                f"{annotation.where}: a text of {longest} tokens, NETWORK.VLBERT.max_position_embeddings has room for "
                f"{self.max_row}"
            )
        return rows

    def _row(self, query: list[TaggedToken], choice: list[TaggedToken]) -> tuple[list[int], list[int], list[int]]:
        """Special tokens are tied to box 0, and so is what has no box without the image box (spec 20 §5.3 and Q-6)."""
        parts = {ANSWER_FIRST: [choice, query], ONE_SENTENCE: [query + choice]}.get(self.layout, [query, choice])
        # A written-out "[PAD]" is no token of the original's.
        parts = [[token for token in part if token.id != self.tokenizer.pad_id] for part in parts]
        ids, segments = join_segments(
            [[t.id for t in part] for part in parts], self.tokenizer.cls_id, self.tokenizer.sep_id
        )
        tags, _ = join_segments([[max(t.tag, 0) for t in part] for part in parts], 0, 0)
        return ids, segments, tags

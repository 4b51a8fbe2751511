"""Text sequences of a VCR question: the query with every choice (original 8.2 to 8.11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.config import Config
from common.config.derived import usable_positions
from common.data.text import BertTokenizer, join_segments
from common.errors import ConfigError, DataError
from vcr.annotations import Annotation, Text
from vcr.text import (
    MAX_TOKENS,
    Q2A,
    QA2R,
    Query,
    TaggedToken,
    keep_relevant_detections,
    tokenize_with_tags,
    truncate_q2a,
    truncate_qa2r,
)

ANSWER_FIRST, ONE_SENTENCE = "answer first", "one sentence"  # layouts
RESERVED_POSITIONS = 2  # positions that a text cannot use: the regions' and END's


@dataclass(frozen=True)
class TextSequenceBuilder:
    """Builds the text sequences of a question, one for each choice.

    task: Q2A chooses an answer, QA2R a rationale. layout: "" is [CLS] query [SEP] choice [SEP]; ANSWER_FIRST puts the
    choice first; ONE_SENTENCE has no [SEP] between query and choice. image_box: words belong to the whole image, which
    is box 0; otherwise to detection 0. relevant_only: leave out detections that no text mentions. basic_align: see
    `tokenize_with_tags`. no_question: the query of QA2R is the answer alone. seq_len: largest number of word pieces of
    query and choice. max_length: largest number of tokens of a sequence.
    Raises DataError for another task.
    """

    tokenizer: BertTokenizer
    task: str = Q2A
    layout: str = ""
    image_box: bool = True
    relevant_only: bool = False
    basic_align: bool = False
    no_question: bool = False
    seq_len: int = MAX_TOKENS
    max_length: int = 510

    def __post_init__(self) -> None:
        if self.task not in (Q2A, QA2R):
            raise DataError(f"DATASET.TASK {self.task!r}: expected {Q2A} or {QA2R}")

    @classmethod
    def from_config(cls, cfg: Config, tokenizer: BertTokenizer, seq_len: int = MAX_TOKENS) -> TextSequenceBuilder:
        """Raises ConfigError if both layouts are switched on."""
        dataset, network = cfg.DATASET, cfg.NETWORK
        if network.ANSWER_FIRST and network.QA_ONE_SENT:
            raise ConfigError("NETWORK.ANSWER_FIRST and NETWORK.QA_ONE_SENT: expected one of them at most")
        return cls(
            tokenizer,
            task=dataset.TASK,
            layout=ANSWER_FIRST if network.ANSWER_FIRST else ONE_SENTENCE if network.QA_ONE_SENT else "",
            image_box=dataset.ADD_IMAGE_AS_A_BOX,
            relevant_only=dataset.ONLY_USE_RELEVANT_DETS,
            basic_align=dataset.BASIC_ALIGN,
            no_question=dataset.QA2R_NOQ,
            seq_len=seq_len,
            max_length=usable_positions(cfg) - RESERVED_POSITIONS,
        )

    def relevant(self, annotation: Annotation) -> tuple[Annotation, list[int]]:
        """The annotation with the detections that are used, and their old numbers (original 8.2)."""
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
        """The truncated texts of a question: one query. QA2R without labels has one query for each answer.

        annotation: a result of `relevant`. names: of its detections, as texts call them.
        """
        question = self._tokens(annotation, annotation.question, names, "question")
        answers = self._all_tokens(annotation, annotation.answers, names, "answer_choices")
        if self.task == Q2A:
            return [truncate_q2a(question, answers, self.seq_len)]
        rationales = self._all_tokens(annotation, annotation.rationales, names, "rationale_choices")
        if annotation.answer_label is None:
            return [Query(question, answer, rationales) for answer in answers]
        return [truncate_qa2r(question, answers[annotation.answer_label], rationales, self.seq_len)]

    def build(self, annotation: Annotation, queries: Sequence[Query]) -> list[tuple[list[int], list[int], list[int]]]:
        """(ids, segment ids, tags) of every query with every choice.

        Raises DataError for a sequence of more than `max_length` tokens.
        """
        sequences = []
        for query in queries:
            first = [] if query.answer is not None and self.no_question else query.question
            both = [*first, *(query.answer or [])]
            sequences += [self._sequence(both, choice) for choice in query.choices]
        longest = max(len(ids) for ids, _, _ in sequences)
        if longest > self.max_length:
            raise DataError(
                f"{annotation.where}: a text of {longest} tokens, NETWORK.VLBERT.max_position_embeddings has room for "
                f"{self.max_length}"
            )
        return sequences

    def _all_tokens(
        self, annotation: Annotation, texts: Sequence[Text], names: Sequence[str], key: str
    ) -> list[list[TaggedToken]]:
        return [self._tokens(annotation, text, names, f"{key}[{i}]") for i, text in enumerate(texts)]

    def _tokens(self, annotation: Annotation, text: Text, names: Sequence[str], key: str) -> list[TaggedToken]:
        tokens = tokenize_with_tags(text, names, self.tokenizer, self.basic_align, 0 if self.image_box else -1)
        if not tokens:
            raise DataError(f"{annotation.where}: {key} has no word piece: {text}")
        return tokens

    def _sequence(self, query: list[TaggedToken], choice: list[TaggedToken]) -> tuple[list[int], list[int], list[int]]:
        """Special tokens belong to box 0. Without the image box, so do words (original 8.10)."""
        parts = {ANSWER_FIRST: [choice, query], ONE_SENTENCE: [query + choice]}.get(self.layout, [query, choice])
        # The original drops a written-out "[PAD]", too.
        parts = [[token for token in part if token.id != self.tokenizer.pad_id] for part in parts]
        ids, segments = join_segments(
            [[t.id for t in part] for part in parts], self.tokenizer.cls_id, self.tokenizer.sep_id
        )
        tags, _ = join_segments([[max(t.tag, 0) for t in part] for part in parts], 0, 0)
        return ids, segments, tags

"""Answers to questions about any image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.data.sample import ModelOutput
from common.predict.prediction import Prediction, Prepared, ranked
from common.predict.predictor import Predictor
from common.predict.user_images import UserImage
from vqa.dataset import RESERVED_POSITIONS, load_answers, question_sequence
from vqa.fields import FIELDS


class VQAPredictor(Predictor):
    """predictor(image, question=...): the best answers of the vocabulary.

    A probability is the sigmoid of the logit: the share of annotators that the model expects to agree. The
    probabilities of all answers need not sum to 1.
    """

    task = "vqa"
    fields = FIELDS
    answers: Sequence[str]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.answers = load_answers(self.cfg).answers

    def build(self, image: UserImage, boxes: Any, asked: dict[str, Any]) -> Prepared:
        return self.inputs.single_text(image, boxes, asked, "question", question_sequence, RESERVED_POSITIONS)

    def read(self, output: ModelOutput, index: int, prepared: Prepared, top_k: int) -> tuple[Prediction, int]:
        best = ranked(output.predictions["label_logits"][index].float().sigmoid(), top_k)
        return prepared.prediction([{"answer": self.answers[i], "probability": p} for i, p in best]), 0

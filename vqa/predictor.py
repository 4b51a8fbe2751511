"""Answers to questions about any image."""

from __future__ import annotations

from typing import Any

from common.data.sample import ModelOutput
from common.predict.predictor import (
    Prediction,
    Predictor,
    Prepared,
    ranked,
)
from common.predict.user_images import UserImage
from vqa.dataset import RESERVED_POSITIONS, load_answers, question_row
from vqa.predict import FIELDS


class VQAPredictor(Predictor):
    """predictor(image, question=...): answers of the vocabulary; the probability is the sigmoid of the logit, the
    share of annotators' agreement that the model expects, so that those of all answers need not sum to 1."""

    task = "vqa"
    fields = FIELDS

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.answers = load_answers(self.cfg).answers

    def build(self, image: UserImage, boxes: Any, asked: dict[str, Any]) -> Prepared:
        return self.one_text(image, boxes, asked, question_row, RESERVED_POSITIONS)

    def read(self, output: ModelOutput, index: int, prepared: Prepared, top_k: int) -> tuple[Prediction, int]:
        best = ranked(output.predictions["label_logits"][index].float().sigmoid(), top_k)
        answers = [{"answer": self.answers[i], "probability": p} for i, p in best]
        return self.prediction(prepared, answers), 0

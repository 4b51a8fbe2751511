"""The box that an expression means, in any image."""

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
from refcoco.dataset import RESERVED_POSITIONS, expression_row
from refcoco.predict import FIELDS


class ReferringPredictor(Predictor):
    """predictor(image, expression=...): the boxes, "box" xyxy in pixels of the image and "index" its row in
    Prediction.boxes; the probability is the sigmoid of its score, for each box on its own."""

    task = "refcoco"
    fields = FIELDS

    def build(self, image: UserImage, boxes: Any, asked: dict[str, Any]) -> Prepared:
        return self.one_text(image, boxes, asked, expression_row, RESERVED_POSITIONS)

    def read(self, output: ModelOutput, index: int, prepared: Prepared, top_k: int) -> tuple[Prediction, int]:
        scores = output.predictions["label_logits"][index, : len(prepared.boxes)].float().sigmoid()
        prediction = self.prediction(prepared, [])
        prediction.answers = [
            {"answer": _called(prepared.names[i]), "probability": p, "box": prediction.boxes[i], "index": i}
            for i, p in ranked(scores, top_k)
        ]
        return prediction, 0


def _called(name: str) -> str:
    return "the whole image" if name == "image" else f"box {name}"

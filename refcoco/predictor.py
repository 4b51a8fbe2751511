"""The box that an expression refers to, in any image."""

from __future__ import annotations

from typing import Any

from common.data.sample import ModelOutput
from common.predict.prediction import Prediction, Prepared, ranked
from common.predict.predictor import Predictor
from common.predict.user_images import UserImage
from refcoco.dataset import RESERVED_POSITIONS, expression_sequence
from refcoco.fields import FIELDS


class ReferringPredictor(Predictor):
    """predictor(image, expression=...): the boxes, best first.

    "box" is xyxy in pixels of the image, "index" its number in Prediction.boxes. A probability is the sigmoid of the
    score of one box. The probabilities of all boxes need not sum to 1.
    """

    task = "refcoco"
    fields = FIELDS

    def build(self, image: UserImage, boxes: Any, asked: dict[str, Any]) -> Prepared:
        return self.inputs.single_text(image, boxes, asked, "expression", expression_sequence, RESERVED_POSITIONS)

    def read(self, output: ModelOutput, index: int, prepared: Prepared, top_k: int) -> tuple[Prediction, int]:
        scores = output.predictions["label_logits"][index, : len(prepared.boxes)].float().sigmoid()
        prediction = prepared.prediction([])
        prediction.answers = [
            {"answer": _title(prepared.names[i]), "probability": p, "box": prediction.boxes[i], "index": i}
            for i, p in ranked(scores, top_k)
        ]
        return prediction, 0


def _title(name: str) -> str:
    return "the whole image" if name == "image" else f"box {name}"

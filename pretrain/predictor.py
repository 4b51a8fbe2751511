"""Masked words of a caption, and the classes of regions, for any image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.data.sample import ModelOutput
from common.errors import InputError
from common.predict.prediction import Prediction, Prepared, ranked
from common.predict.predictor import Predictor
from common.predict.user_images import UserImage
from pretrain.fields import FIELDS
from pretrain.masking import image_feature_without

RESERVED_POSITIONS = 4  # for [CLS], [SEP], the regions' position and END's
REGION_LABELS = 3


class CaptionPredictor(Predictor):
    """predictor(image, caption="a [MASK] dog", hide=[2]): words for each [MASK], and classes for each box.

    "mask" of an answer is the number of its [MASK], from 0. The classes of a hidden box are those that the model
    expects there. Probabilities are softmax probabilities.
    """

    task = "pretrain"
    fields = FIELDS

    def build(self, image: UserImage, boxes: Any, asked: dict[str, Any]) -> Prepared:
        notes: list[str] = []
        inputs, tokenizer = self.inputs, self.inputs.tokenizer
        ids = inputs.word_pieces(asked, "caption", RESERVED_POSITIONS, notes)
        found = inputs.images.regions(image, boxes).boxes
        hidden = _hidden_boxes(asked.get("hide"), len(found))
        seen, features = self._regions(image, found, hidden)
        tokens = [tokenizer.cls_id, *ids, tokenizer.sep_id]
        ops = torch.cat([torch.zeros(int(inputs.image_box), dtype=torch.int64), hidden.long()])
        sample = inputs.sample(
            image,
            seen,
            features,
            text_ids=torch.tensor(tokens),
            segment_ids=torch.zeros(len(tokens), dtype=torch.int64),
            targets={"mvrc_ops": ops},
        )
        return inputs.prepared(image, sample, seen, [tokens], asked, notes)

    def read(self, output: ModelOutput, index: int, prepared: Prepared, top_k: int) -> tuple[Prediction, int]:
        predictions = output.predictions
        words = next((predictions[k] for k in ("mlm_logits", "mlm_logits_wvc") if k in predictions), None)
        answers = []
        masks = [i for i, token in enumerate(prepared.tokens[0]) if token == self.inputs.tokenizer.mask_id]
        for number, position in enumerate(masks):
            if words is None:
                break
            best = ranked(words[index, position].float().softmax(-1), top_k)
            answers += [{"answer": self.pieces.get(i, "?"), "probability": p, "mask": number} for i, p in best]
        prediction = prepared.prediction(answers)
        if not masks:
            prediction.notes.append("no [MASK] in the caption: no word to fill in")
        if "mvrc_logits" in predictions:
            prediction.regions = self._region_classes(predictions["mvrc_logits"][index, : len(prepared.boxes)])
        return prediction, 0

    def _regions(self, image: UserImage, boxes: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Boxes [R, 4] and features [R, 2048] of the sequence, as training makes them. hidden: bool [n] of boxes.

        Precomputed features: the whole image is the mean of the features that are not hidden. From pixels: hidden
        boxes are blanked, unless the module replaces their features by a learnt one.
        """
        network = self.cfg.NETWORK
        whole = blanked = None
        if network.IMAGE_FEAT_PRECOMPUTED:
            if self.inputs.image_box and len(boxes):
                whole = image_feature_without(self.images.region_features(image, boxes), hidden)
        elif network.MASK_RAW_PIXELS and hidden.any():
            blanked = boxes[hidden]
        return self.inputs.encoder_regions(image, boxes, blanked=blanked, whole=whole)

    def _region_classes(self, logits: Tensor) -> list[dict[str, Any]]:
        """The best classes of each region, without the whole image. logits: [R, classes]."""
        return [
            {
                "box": row,
                "labels": [
                    {"label": self._class_name(i), "probability": p}
                    for i, p in ranked(scores.softmax(-1), REGION_LABELS)
                ],
            }
            for row, scores in enumerate(logits.float())
            if row or not self.inputs.image_box
        ]

    def _class_name(self, number: int) -> str:
        return self.labels[number] if self.labels and number < len(self.labels) else f"class {number}"


def _hidden_boxes(hide: Any, count: int) -> Tensor:
    """bool [count] from the numbers, from 1, of hidden boxes. Raises InputError."""
    if not isinstance(hide, list | tuple | None):
        raise InputError(f"hide: expected a list of numbers of boxes, got {type(hide).__name__}")
    hidden = torch.zeros(count, dtype=torch.bool)
    for number in hide or []:
        if type(number) is not int or not 1 <= number <= count:
            raise InputError(f"hide: {number!r} is no number of a box, there are 1 to {count}")
        hidden[number - 1] = True
    return hidden

"""Masked words of a caption and the classes of regions, for any image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.data.sample import ModelOutput
from common.errors import InputError
from common.predict.predictor import (
    Prediction,
    Predictor,
    Prepared,
    ranked,
    region_names,
)
from common.predict.user_images import UserImage, whole_box
from common.regions.regions import Regions
from pretrain.masking import image_feature_without
from pretrain.predict import FIELDS

RESERVED_POSITIONS = 4  # [CLS], [SEP], the regions' and END's
REGION_LABELS = 3


class CaptionPredictor(Predictor):
    """predictor(image, caption="a [MASK] dog", hide=[2]): for every [MASK] its words, "mask" says which one; for every
    box the classes that the region head sees in it, or expects where the box is hidden. Both are softmax
    probabilities."""

    task = "pretrain"
    fields = FIELDS

    def build(self, image: UserImage, boxes: Any, asked: dict[str, Any]) -> Prepared:
        notes: list[str] = []
        tokenizer = self.tokenizer
        ids = tokenizer.real_ids(tokenizer.tokenize(self.text(asked, "caption")))
        ids = self.cut(ids, self.max_positions - RESERVED_POSITIONS, "caption", notes)
        regions = self.images.regions(image, boxes)
        hidden = self._hidden(asked.get("hide"), len(regions.boxes))
        rows, features = self._features(image, regions, hidden)
        text = [tokenizer.cls_id, *ids, tokenizer.sep_id]
        ops = torch.cat([torch.zeros(int(self.image_box), dtype=torch.int64), hidden.long()])
        sample = self.sample(
            image,
            rows,
            features,
            text_ids=torch.tensor(text),
            segment_ids=torch.zeros(len(text), dtype=torch.int64),
            targets={"mvrc_ops": ops},
        )
        return Prepared(sample, image.pixels.size, rows, region_names(len(rows), self.image_box), [text], asked, notes)

    def read(self, output: ModelOutput, index: int, prepared: Prepared, top_k: int) -> tuple[Prediction, int]:
        predictions = output.predictions
        words = next((predictions[k] for k in ("mlm_logits", "mlm_logits_wvc") if k in predictions), None)
        answers = []
        masks = [i for i, token in enumerate(prepared.tokens[0]) if token == self.tokenizer.mask_id]
        for number, position in enumerate(masks):
            if words is None:
                break
            best = ranked(words[index, position].float().softmax(-1), top_k)
            answers += [{"answer": self.pieces.get(i, "?"), "probability": p, "mask": number} for i, p in best]
        prediction = self.prediction(prepared, answers)
        if not masks:
            prediction.notes.append("no [MASK] in the caption: no word to fill in")
        if "mvrc_logits" in predictions:
            prediction.regions = self._labels(predictions["mvrc_logits"][index, : len(prepared.boxes)])
        return prediction, 0

    def _labels(self, logits: Tensor) -> list[dict[str, Any]]:
        """logits: [R, classes], the whole image first where it is a box; that has no class."""
        return [
            {
                "box": row,
                "labels": [
                    {"label": self.label(i), "probability": p} for i, p in ranked(scores.softmax(-1), REGION_LABELS)
                ],
            }
            for row, scores in enumerate(logits.float())
            if row or not self.image_box
        ]

    def _hidden(self, hide: Any, count: int) -> Tensor:
        """bool [count] of the numbers, from 1, of boxes to hide."""
        hidden = torch.zeros(count, dtype=torch.bool)
        for number in hide or []:
            if type(number) is not int or not 1 <= number <= count:
                raise InputError(f"hide: {number!r} is no number of a box, there are 1 to {count}")
            hidden[number - 1] = True
        return hidden

    def _features(self, image: UserImage, regions: Regions, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """As training has them: features of files with their mean for the whole image; or the model's own CNN on
        pixels that are blanked where the model has no feature that stands for a hidden region."""
        network = self.cfg.NETWORK
        if network.IMAGE_FEAT_PRECOMPUTED:
            if not len(regions.boxes):
                return self.encoded(image, regions)
            features = self.images.encode(image, regions.boxes)
            if not self.image_box:
                return regions.boxes, features
            whole = image_feature_without(features, hidden)
            return torch.cat([whole_box(image), regions.boxes]), torch.cat([whole[None], features])
        if not network.MASK_RAW_PIXELS or not hidden.any():
            return self.encoded(image, regions)
        rows = torch.cat([whole_box(image), regions.boxes]) if self.image_box else regions.boxes
        return rows, self.images.encode(image, rows, hidden=regions.boxes[hidden])

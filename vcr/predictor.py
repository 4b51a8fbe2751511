"""Answers and the reasons for them, chosen from a list, for any image."""

from __future__ import annotations

import re
from dataclasses import replace
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
)
from common.predict.user_images import UserImage, whole_box
from vcr.annotations import CATEGORY_IDS, Annotation, Text
from vcr.dataset import RESERVED_POSITIONS, row_layout
from vcr.masks import instance_mask
from vcr.predict import FIELDS
from vcr.sequence import RowBuilder
from vcr.text import MAX_TOKENS, QA2R, replacement_names

_REFERENCE = re.compile(r"\[\s*\d+(?:\s*,\s*\d+)*\s*\]")


class VCRPredictor(Predictor):
    """predictor(image, boxes=..., objects=..., question=..., answers=[...]): the choices with their softmax
    probabilities, "index" from 0. A model of QA2R chooses among `rationales` instead, for the one answer, or for
    number `answer` of them.

    Texts are strings in which [2] stands for box 2, or lists as in the annotations of VCR, whose numbers are from 0.
    """

    task = "vcr"
    fields = FIELDS
    fixed_padding = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        dataset, network = self.cfg.DATASET, self.cfg.NETWORK
        self.builder = RowBuilder(
            self.tokenizer,
            dataset.TASK,
            row_layout(network),
            self.image_box,
            dataset.ONLY_USE_RELEVANT_DETS,
            dataset.BASIC_ALIGN,
            dataset.QA2R_NOQ,
            MAX_TOKENS,
            self.max_positions - RESERVED_POSITIONS,
        )

    @property
    def sees_regions(self) -> bool:
        return not (self.cfg.NETWORK.BLIND or self.cfg.NETWORK.NO_OBJ_ATTENTION)

    def build(self, image: UserImage, boxes: Any, asked: dict[str, Any]) -> Prepared:
        found = self.images.regions(image, boxes).boxes
        everything = self._annotation(asked, len(found))
        annotation, keep = self.builder.relevant(everything)
        names = replacement_names(annotation.objects)
        queries = self.builder.queries(annotation, names)
        notes = []
        if queries != replace(self.builder, seq_len=len(str(asked))).queries(annotation, names):
            notes.append(f"question and choices cut to {MAX_TOKENS} word pieces together, as in training")
        rows = self.builder.build(annotation, queries)
        masks = self._masks(asked.get("polygons"), found)
        classes = [CATEGORY_IDS[name] for name in annotation.objects]
        shown, numbers, masks = found[keep], [str(i + 1) for i in keep], masks[keep]
        if self.image_box:
            shown, classes, numbers = torch.cat([whole_box(image), shown]), [0, *classes], ["image", *numbers]
            masks = torch.cat([torch.ones(1, *masks.shape[1:]), masks])
        if not len(shown):
            raise InputError("boxes: no box is mentioned, and this model does not see the whole image as one")
        ids, segments, tags = ([torch.tensor(row[i]) for row in rows] for i in range(3))
        sample = self.sample(
            image,
            shown,
            self._features(image, found, shown, masks),
            box_classes=torch.tensor(classes),
            text_ids=ids,
            segment_ids=segments,
            text_tags=tags,
        )
        asked = {**asked, "choices": asked["rationales"] if self.builder.task == QA2R else asked["answers"]}
        tokens = [row[0] for row in rows]
        return Prepared(sample, image.pixels.size, shown, numbers, tokens, asked, notes, group=len(tokens))

    def read(self, output: ModelOutput, index: int, prepared: Prepared, top_k: int) -> tuple[Prediction, int]:
        best = ranked(output.predictions["label_logits"][index].float().softmax(-1), top_k)
        choices = prepared.asked["choices"]
        answers = [{"answer": _as_string(choices[i]), "probability": p, "index": i} for i, p in best]
        return self.prediction(prepared, answers), best[0][0]

    def _features(self, image: UserImage, found: Tensor, boxes: Tensor, masks: Tensor) -> Tensor | None:
        """Features [R, 2048] of the boxes that are shown; precomputed ones know no masks. found: [n, 4], all boxes."""
        if self.images.encode_regions is None:
            return None
        if not self.cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED:
            return self.images.encode(image, boxes, masks)
        if not self.image_box:
            return self.images.encode(image, boxes)
        whole = self.images.whole(image, self.images.encode(image, found))
        return torch.cat([whole[None], self.images.encode(image, boxes[1:])]) if len(boxes) > 1 else whole[None]

    def _annotation(self, asked: dict[str, Any], count: int) -> Annotation:
        objects = _list(asked, "objects")
        for i, name in enumerate(objects):
            if name not in CATEGORY_IDS:
                raise InputError(f"objects[{i}] is {name!r}: expected one of {', '.join(sorted(CATEGORY_IDS))}")
        if len(objects) != count:
            raise InputError(f"objects: {len(objects)} categories for {count} boxes")
        answers = self._texts(asked, "answers", count)
        rationales: list[Text] = []
        label = None
        if self.builder.task == QA2R:
            if "rationales" not in asked:
                raise InputError("rationales: missing; this is a model of QA2R, which chooses among them")
            rationales = self._texts(asked, "rationales", count)
            label = asked.get("answer", 1 if len(answers) == 1 else None)
            if type(label) is not int or not 1 <= label <= len(answers):
                raise InputError(f"answer is {label!r}: expected which of the {len(answers)} answers, from 1")
            label -= 1
        elif "rationales" in asked:
            raise InputError("rationales: this is a model of Q2A, which chooses among answers")
        question = _mixed(asked["question"], count, "question")
        return Annotation("input", "", objects, "", "", question, answers, rationales, label)

    def _texts(self, asked: dict[str, Any], name: str, count: int) -> list[Text]:
        texts = _list(asked, name)
        if not texts:
            raise InputError(f"{name}: expected at least one choice")
        return [_mixed(text, count, f"{name}[{i}]") for i, text in enumerate(texts)]

    def _masks(self, polygons: Any, boxes: Tensor) -> Tensor:
        """float32 [R, S, S]: the outlines, or the boxes as they are."""
        size = self.cfg.DATASET.MASK_SIZE
        masks = torch.ones(len(boxes), size, size)
        if polygons is None:
            return masks
        if not isinstance(polygons, list) or len(polygons) != len(boxes):
            raise InputError(f"polygons: expected a list of outlines for each of the {len(boxes)} boxes")
        for i, (outline, box) in enumerate(zip(polygons, boxes, strict=True)):
            try:
                masks[i] = torch.from_numpy(instance_mask(outline, box.numpy(), size))
            except (TypeError, ValueError) as error:
                raise InputError(f"polygons[{i}]: {error}") from error
        return masks


def _list(asked: dict[str, Any], name: str) -> list[Any]:
    if not isinstance(asked[name], list | tuple):
        raise InputError(f"{name}: expected a list, got {type(asked[name]).__name__}")
    return list(asked[name])


def _mixed(text: Any, count: int, what: str) -> Text:
    """Words and references, from 0, of a string with references from 1 or of a list as it is."""
    mixed: list[Any] = []
    if isinstance(text, str):
        position = 0
        for match in _REFERENCE.finditer(text):
            mixed += text[position : match.start()].split()
            mixed.append([int(n) - 1 for n in re.findall(r"\d+", match[0])])
            position = match.end()
        mixed += text[position:].split()
    elif isinstance(text, list):
        mixed = text
    if not mixed:
        raise InputError(f"{what}: expected a text, got {text!r}")
    for token in mixed:
        if isinstance(token, str):
            continue
        if not isinstance(token, list) or not token or any(type(n) is not int or not 0 <= n < count for n in token):
            raise InputError(f"{what}: {token!r} refers to a box that is not there, there are {count} (here from 0)")
    return mixed


def _as_string(text: Any) -> str:
    if isinstance(text, str):
        return text
    return " ".join(t if isinstance(t, str) else f"[{','.join(str(n + 1) for n in t)}]" for t in text)

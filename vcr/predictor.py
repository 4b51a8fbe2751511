"""The best answer, or the best rationale for an answer, of a list of choices, for any image."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from common.data.sample import ModelOutput
from common.errors import InputError
from common.predict.inputs import check_characters
from common.predict.prediction import Prediction, Prepared, ranked
from common.predict.predictor import Predictor
from common.predict.user_images import UserImage
from vcr.annotations import CATEGORY_IDS, Annotation, Text
from vcr.fields import FIELDS
from vcr.masks import instance_mask
from vcr.sequence import TextSequenceBuilder
from vcr.text import MAX_TOKENS, QA2R, replacement_names

_REFERENCE = re.compile(r"\[\s*\d+(?:\s*,\s*\d+)*\s*\]")


class VCRPredictor(Predictor):
    """predictor(image, boxes=..., objects=..., question=..., answers=[...]): the choices, best first.

    "index" is the number of a choice, from 0. Probabilities are softmax probabilities. A model of QA2R chooses among
    `rationales`, for the only answer, or for number `answer` of the answers.
    A text is a string, in which [2] stands for box 2, or a list as in the annotations of VCR, whose numbers start at 0.
    """

    task = "vcr"
    fields = FIELDS
    fixed_padding = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.builder = TextSequenceBuilder.from_config(self.cfg, self.inputs.tokenizer)

    @property
    def sees_regions(self) -> bool:
        return not (self.cfg.NETWORK.BLIND or self.cfg.NETWORK.NO_OBJ_ATTENTION)

    def build(self, image: UserImage, boxes: Any, asked: dict[str, Any]) -> Prepared:
        found = self.images.regions(image, boxes).boxes
        annotation, keep = self.builder.relevant(self._annotation(asked, len(found)))
        called = replacement_names(annotation.objects)
        queries = self.builder.queries(annotation, called)
        notes: list[str] = []
        if queries != replace(self.builder, seq_len=len(str(asked))).queries(annotation, called):
            notes.append(f"question and choices cut to {MAX_TOKENS} word pieces together, as in training")
        sequences = self.builder.build(annotation, queries)
        if not keep and not self.inputs.image_box:
            raise InputError("boxes: no box is mentioned, and this model does not see the whole image as one")
        seen, features = self._regions(image, found, keep, self._masks(asked.get("polygons"), found))
        of_image = [0] if self.inputs.image_box else []
        ids, segments, tags = ([torch.tensor(sequence[i]) for sequence in sequences] for i in range(3))
        sample = self.inputs.sample(
            image,
            seen,
            features,
            box_classes=torch.tensor([*of_image, *(CATEGORY_IDS[name] for name in annotation.objects)]),
            text_ids=ids,
            segment_ids=segments,
            text_tags=tags,
        )
        asked = {**asked, "choices": asked["rationales"] if self.builder.task == QA2R else asked["answers"]}
        names = [*("image" for _ in of_image), *(str(i + 1) for i in keep)]
        tokens = [sequence[0] for sequence in sequences]
        return Prepared(sample, image.pixels.size, seen, names, tokens, asked, notes, group=len(tokens))

    def read(self, output: ModelOutput, index: int, prepared: Prepared, top_k: int) -> tuple[Prediction, int]:
        best = ranked(output.predictions["label_logits"][index].float().softmax(-1), top_k)
        choices = prepared.asked["choices"]
        answers = [{"answer": _as_string(choices[i]), "probability": p, "index": i} for i, p in best]
        return prepared.prediction(answers), best[0][0]

    def _regions(self, image: UserImage, found: Tensor, keep: list[int], masks: Tensor) -> tuple[Tensor, Tensor | None]:
        """Boxes [R, 4] and features [R, 2048] of the sequence. found: all boxes [n, 4]; keep: those that are used.

        masks: [n, S, S]; precomputed features do not depend on them.
        """
        if not self.cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED:
            return self.inputs.encoder_regions(image, found[keep], masks[keep])
        # The whole image has the mean of all boxes, also of those that no text mentions.
        whole = self.images.stored_whole_feature(image, found) if self.inputs.image_box else None
        return self.inputs.encoder_regions(image, found[keep], whole=whole)

    def _annotation(self, asked: dict[str, Any], count: int) -> Annotation:
        objects = _list(asked, "objects")
        for i, name in enumerate(objects):
            if not isinstance(name, str) or name not in CATEGORY_IDS:
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
        question = parse_text(asked["question"], count, "question")
        return Annotation("input", "", objects, "", "", question, answers, rationales, label)

    def _texts(self, asked: dict[str, Any], name: str, count: int) -> list[Text]:
        texts = _list(asked, name)
        if not texts:
            raise InputError(f"{name}: expected at least one choice")
        return [parse_text(text, count, f"{name}[{i}]") for i, text in enumerate(texts)]

    def _masks(self, polygons: Any, boxes: Tensor) -> Tensor:
        """float32 [n, S, S] of boxes [n, 4]: masks of the outlines; without outlines, masks of ones."""
        size = self.cfg.DATASET.MASK_SIZE
        masks = torch.ones(len(boxes), size, size)
        if polygons is None:
            return masks
        if not isinstance(polygons, list) or len(polygons) != len(boxes):
            raise InputError(f"polygons: expected a list of outlines for each of the {len(boxes)} boxes")
        for i, (outline, box) in enumerate(zip(polygons, boxes, strict=True)):
            try:
                masks[i] = torch.from_numpy(instance_mask(outline, box.numpy(), size))
            except (TypeError, ValueError, LookupError, OverflowError) as error:
                raise InputError(f"polygons[{i}]: {error}") from error
        return masks


def _list(asked: dict[str, Any], name: str) -> list[Any]:
    if not isinstance(asked[name], list | tuple):
        raise InputError(f"{name}: expected a list, got {type(asked[name]).__name__}")
    return list(asked[name])


def parse_text(text: Any, count: int, what: str) -> Text:
    """Words and references, which start at 0. text: a string with references from 1, or a list with references from 0.

    count: number of boxes. what: the field, for errors. Raises InputError.
    """
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
            check_characters(token, what)
            continue
        if not isinstance(token, list) or not token or any(type(n) is not int or not 0 <= n < count for n in token):
            raise InputError(f"{what}: {token!r} refers to a box that is not there, there are {count} (here from 0)")
    return mixed


def _as_string(text: Any) -> str:
    if isinstance(text, str):
        return text
    return " ".join(t if isinstance(t, str) else f"[{','.join(str(n + 1) for n in t)}]" for t in text)

"""Questions with four answers and four rationales as the files of VCR, which `vcr` reads.

{"id": 7, "image": "a/x.jpg", "objects": ["person", "dog"], "boxes": [[x1, y1, x2, y2], ...],
 "question": "What is [1] doing ?", "answers": [four texts], "label": 0,
 "rationales": [four texts], "rationale_label": 2}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from common.config.table import from_task
from data.own.images import Boxes, Images
from data.own.lines import Problems
from data.own.recipe import Recipe, TaskKeys
from data.own.task import OwnTask, Parts, Sample, Settings, texts_of, write_json, write_json_lines

FOLDER = "images"  # of images and metadata


@dataclass(frozen=True)
class Choices:
    """What VCR reads of a record. Texts are mixed tokens. rationales: [] without the key. Labels: None in test."""

    objects: tuple[str, ...]
    question: list[Any]
    answers: list[list[Any]]
    rationales: list[list[Any]]
    label: int | None
    rationale_label: int | None


class OwnVCR(OwnTask):
    """The target of a sample is a `Choices`. Boxes are those of the records, because the texts refer to them."""

    name, title = "vcr", "VCR"
    text_key = "question"
    keys = ("objects", "answers", "label", "rationales", "rationale_label")
    columns: ClassVar[dict[str, str]] = {}
    number_key = "annot_id"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._categories = from_task("vcr", "annotations", "CATEGORY_IDS")
        self._count = from_task("vcr", "annotations", "NUM_CHOICES")
        self._parse = from_task("vcr", "predictor", "parse_text")
        self._rationales = False

    def read_text(self, given: Any) -> str:
        if isinstance(given, list):
            return " ".join(map(str, given))
        return super().read_text(given)

    def read_target(self, fields: dict[str, Any], boxes: Boxes | None, required: bool) -> Choices:
        objects = texts_of(fields.get("objects"), "objects")
        for name in objects:
            if name not in self._categories:
                raise ValueError(f"object {name!r:.80}: expected a category of VCR, one of COCO without spaces")
        if boxes is None or len(boxes) != len(objects):
            raise ValueError(f"{len(objects)} objects for {len(boxes or ())} boxes; VCR needs a box for each object")
        answers = self._choices(fields, "answers", len(objects))
        rationales = self._choices(fields, "rationales", len(objects)) if "rationales" in fields else []
        label = self._label(fields, "label", required)
        rationale_label = self._label(fields, "rationale_label", required and bool(rationales))
        question = self._parse(fields.get("question"), len(objects), "question")
        return Choices(tuple(objects), question, answers, rationales, label, rationale_label)

    def _choices(self, fields: dict[str, Any], key: str, count: int) -> list[list[Any]]:
        choices = texts_of(fields.get(key), key)
        if len(choices) != self._count:
            raise ValueError(f"{key} has {len(choices)} texts, expected {self._count}")
        return [self._parse(text, count, f"{key}[{i}]") for i, text in enumerate(choices)]

    def _label(self, fields: dict[str, Any], key: str, required: bool) -> int | None:
        label = fields.get(key)
        if label is None and not required:
            return None
        if type(label) is not int or not 0 <= label < self._count:
            raise ValueError(f"{key} must be a number from 0 to {self._count - 1}, got {label!r:.80}")
        return label

    def prepare(self, parts: Parts, images: Images, problems: Problems) -> None:
        objects: dict[int, tuple[str, ...]] = {}
        samples = [sample for found in parts.values() for sample in found]
        self._rationales = any(sample.target.rationales for sample in samples)
        for sample in samples:
            if objects.setdefault(sample.image.number, sample.target.objects) != sample.target.objects:
                problems.add(sample.record.line, "other objects than in a line before; they belong to the image")
            if self._rationales and not sample.target.rationales:
                problems.add(sample.record.line, "no rationales, though other records have them")

    def texts(self, samples: Sequence[Sample]) -> Iterable[str]:
        names = from_task("vcr", "text", "GENDER_NEUTRAL_NAMES")  # these stand for persons in the texts
        found = [" ".join(names), " ".join(self._categories)]
        for sample in samples:
            target = sample.target
            found += [_words(text) for text in (target.question, *target.answers, *target.rationales)]
        return found

    def write(self, folder: Path, parts: Parts) -> None:
        for part, samples in parts.items():
            for sample in samples:
                self._write_image(folder / FOLDER, sample)
            write_json_lines(folder / f"{part}.jsonl", (self._annotation(part, sample) for sample in samples))

    def _write_image(self, folder: Path, sample: Sample) -> None:
        """Writes the image and its metadata. Without outlines, a mask is the whole box."""
        image = sample.image
        target = folder / f"{image.number}.jpg"
        if target.exists():
            return
        image.place(target, self.settings.link)
        boxes = image.boxes or ()
        metadata = {
            "boxes": [[*box, 1.0] for box in boxes],
            "segms": [[[[x1, y1], [x2, y1], [x2, y2], [x1, y2]]] for x1, y1, x2, y2 in boxes],
            "names": list(sample.target.objects),
            "width": image.size[0],
            "height": image.size[1],
        }
        write_json(target.with_suffix(".json"), metadata)

    def _annotation(self, part: str, sample: Sample) -> dict[str, Any]:
        target = sample.target
        row = {
            "annot_id": f"{part}-{sample.number}",
            "objects": target.objects,
            "img_fn": f"{sample.image.number}.jpg",
            "metadata_fn": f"{sample.image.number}.json",
            "question": target.question,
            "answer_choices": target.answers,
            "rationale_choices": target.rationales or target.answers,  # not read by the half of answers
        }
        if target.label is not None:
            row |= {"answer_label": target.label, "rationale_label": target.rationale_label or 0}
        return row

    def yamls(self, recipe: Recipe) -> dict[str, TaskKeys]:
        halves = {"vcr_q2a.yaml": "Q2A"} | ({"vcr_qa2r.yaml": "QA2R"} if self._rationales else {})
        return {file: self._half(recipe, half) for file, half in halves.items()}

    def _half(self, recipe: Recipe, half: str) -> TaskKeys:
        dataset = f"""\
  DATASET: vcr
  TASK: {half}
  TRAIN_IMAGE_SET: {FOLDER}
  VAL_IMAGE_SET: {FOLDER}
  TEST_IMAGE_SET: {FOLDER}
  TRAIN_ANNOTATION_FILE: train.jsonl
  VAL_ANNOTATION_FILE: val.jsonl
  TEST_ANNOTATION_FILE: {"test" if recipe.test else "val"}.jsonl
  ONLY_USE_RELEVANT_DETS: false  # true leaves out boxes that no text mentions
  MASK_SIZE: {7 if recipe.small_cnn else 14}
"""
        network = f"""\
  ENABLE_CNN_REG_LOSS: false
  CLASSIFIER_TYPE: {"2fc" if recipe.language is None else "1fc"}
  CLASSIFIER_HIDDEN_SIZE: {2 * recipe.hidden}
  CLASSIFIER_DROPOUT: {recipe.dropout}
  CLASSIFIER_SIGMOID: false
"""
        train = '  LOSS_LOGGERS: [["ans_loss", "AnsLoss"]]\n'
        vlbert = "    object_word_embed_mode: 2\n"
        flip = "0.0  # a flip does not change the texts"
        prefix = f"vl-bert-{half.lower()}"
        return TaskKeys(
            "ResNetVLBERT", "questions", dataset, network, vlbert, train, flip, prefix, choices=4, text_scale=0.1
        )


def _words(text: list[Any]) -> str:
    return " ".join(token for token in text if isinstance(token, str))

"""Questions of the user's own as the files of VQA v2, which `vqa` reads.

{"id": 7, "image": "a/x.jpg", "boxes": [[x1, y1, x2, y2]], "question": "what colour?", "answers": ["red", "dark red"]}
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common.config.table import from_task
from common.files.atomic import write_text
from data.own.answers import annotators_answers
from data.own.images import Boxes
from data.own.recipe import Recipe, TaskKeys
from data.own.task import OwnTask, Parts, Sample, Settings, write_json

UNKNOWN = "<unk>"
SETS = {"train": "train2014", "val": "val2014", "test": "test2015"}  # image sets of VQA v2


class OwnVQA(OwnTask):
    """The target of a sample is a tuple of the answers of ten annotators or more, empty in records of test."""

    name, title = "vqa", "VQA"
    text_key, keys = "question", ("answers",)
    columns = {"text": "question", "label": "answers"}
    number_key = "question_id"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._clean = partial(clean_answer, from_task("vqa", "answers", "remove_punctuation"))
        self._answers: list[str] = []

    def read_target(self, fields: dict[str, Any], boxes: Boxes | None, required: bool) -> tuple[str, ...]:
        if "answers" in fields:
            return annotators_answers(fields["answers"], self._clean)
        if required:
            raise ValueError("no answers")
        return ()

    def texts(self, samples: Sequence[Sample]) -> Iterable[str]:
        return [*(sample.record.text for sample in samples), *self._answers]

    def write(self, folder: Path, parts: Parts) -> None:
        self._answers = _answer_list(parts["train"], self.settings.answers)
        for part, samples in parts.items():
            self._write_part(folder, part, samples)
        write_text(folder / "vqa/answers_vqa.txt", "\n".join([UNKNOWN, *self._answers]) + "\n")

    def _write_part(self, folder: Path, part: str, samples: Sequence[Sample]) -> None:
        """Writes images, COCO metadata, questions and answers of an image set."""
        name = SETS[part]
        files = from_task("vqa", "annotations", "IMAGE_SETS")[name]
        images = {sample.image.number: sample.image for sample in samples}
        rows = []
        for number, image in images.items():
            target = folder / files.images / f"COCO_{name}_{number:012d}.jpg"
            image.place(target, self.settings.link)
            rows.append({"id": number, "width": image.size[0], "height": image.size[1], "file_name": target.name})
        write_json(folder / files.metadata, {"images": rows, "annotations": [], "categories": []})
        questions = [
            {"question_id": s.number, "image_id": s.image.number, "question": s.record.text.strip()} for s in samples
        ]
        write_json(folder / files.questions_file, {"questions": questions})
        if part != "test":
            write_json(folder / files.annotations_file, {"annotations": [_annotation(sample) for sample in samples]})

    def yamls(self, recipe: Recipe) -> dict[str, TaskKeys]:
        out, count, pretrained = recipe.out, len(self._answers) + 1, recipe.language is not None
        hidden = recipe.hidden if pretrained else 2 * recipe.hidden
        dataset = f"""\
  DATASET: vqa
  TRAIN_IMAGE_SET: {SETS["train"]}  # the names of VQA v2; {SETS["val"]} and {SETS["test"]} are the other parts
  VAL_IMAGE_SET: {SETS["val"]}
  TEST_IMAGE_SET: {SETS["test" if recipe.test else "val"]}
  ANSWER_VOCAB_FILE: {json.dumps(f"{out}/vqa/answers_vqa.txt")}  # the class names of the model
  ANSWER_VOCAB_SIZE: {count}
  USE_IMDB: false
"""
        network = f"""\
  ENABLE_CNN_REG_LOSS: false
  CLASSIFIER_TYPE: {"mlm" if pretrained else "2fc"}
  CLASSIFIER_HIDDEN_SIZE: {hidden}
  CLASSIFIER_PRETRAINED: {str(pretrained).lower()}  # the classifier starts from the word embeddings of the answers
  CLASSIFIER_DROPOUT: 0.1
"""
        flip = "0.5  # flips also swap the words left and right; 0.0 where the images contain writing"
        return {"vqa.yaml": TaskKeys("ResNetVLBERT", "questions", dataset, network, flip=flip)}

    def summary(self, part: str, samples: Sequence[Sample]) -> str:
        if part == "test":
            return ""
        known = set(self._answers)
        return f"{sum(known.isdisjoint(s.target) for s in samples)} questions without an answer in the list"


def clean_answer(remove_punctuation: Any, answer: str) -> str:
    """Returns an answer as the answer list of `vqa` has it: lower case, without punctuation, single spaces."""
    return " ".join(str(remove_punctuation(answer.strip().lower())).split())


def _answer_list(samples: Sequence[Sample], size: int) -> list[str]:
    """Returns the most frequent answers of training, counted once a question; of equal counts the first is first."""
    counts = Counter(answer for s in samples for answer in dict.fromkeys(s.target) if answer)
    return [answer for answer, _ in counts.most_common(size) if answer != UNKNOWN]


def _annotation(sample: Sample) -> dict[str, Any]:
    answers = sample.target
    [(common, _)] = Counter(answer for answer in answers if answer).most_common(1)
    yes_no = "yes/no" if common in ("yes", "no") else "number" if common.isdigit() else "other"
    return {
        "question_id": sample.number,
        "image_id": sample.image.number,
        "question_type": " ".join(sample.record.text.lower().split()[:2]),
        "answer_type": yes_no,
        "multiple_choice_answer": common,
        "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, 1)],
    }

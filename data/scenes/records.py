"""Records of the real data sets for scenes: COCO, VQA v2, VCR, RefCOCO+, captions.

The functions return plain data for JSON. Boxes are in pixels: xywh in the records of COCO and RefCOCO+, xyxy in the
records of VCR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from data.scenes.description import SHAPES, Scene
from data.scenes.expressions import Expression
from data.scenes.questions import Question
from data.scenes.reasoning import Problem, Tokens

REGION_FOLDER = "vgbua_res101_precomputed"
VCR_CATEGORY = "person"  # of every thing: another category would name its shape, and persons get neutral names


@dataclass(frozen=True)
class Split:
    """Names of one split on disk. Its image ids start at first_id, whatever the size of the other splits."""

    name: str
    first_id: int
    images_json: str
    region_folder: str
    vcr: str
    has_answers: bool = True


SPLITS = {
    "train": Split("train2014", 1, "instances_train2014", "trainval2014_resnet101_faster_rcnn_genome", "train"),
    "val": Split("val2014", 500_001, "instances_val2014", "trainval2014_resnet101_faster_rcnn_genome", "val"),
    "test": Split("test2015", 900_001, "image_info_test2015", "test2015_resnet101_faster_rcnn_genome", "test", False),
}


def image_name(split: Split, image_id: int) -> str:
    """Returns the stem of the file name of an image."""
    return f"COCO_{split.name}_{image_id:012d}"


# ---- COCO and VQA v2 ----


def coco_record(split: Split, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Returns the COCO instances of a split. A split without answers has images and categories only."""
    record: dict[str, Any] = {
        "info": {"description": f"scenes {split.name}"},
        "licenses": [],
        "images": [
            {
                "id": scene.image_id,
                "width": scene.width,
                "height": scene.height,
                "file_name": f"{image_name(split, scene.image_id)}.jpg",
            }
            for scene in scenes
        ],
        "categories": [{"id": i + 1, "name": shape, "supercategory": "shape"} for i, shape in enumerate(SHAPES)],
    }
    if not split.has_answers:
        return record
    record["annotations"] = [
        {
            "id": annotation_id(scene, i),
            "image_id": scene.image_id,
            "category_id": SHAPES.index(thing.shape) + 1,
            "segmentation": [[value for point in thing.polygon for value in point]],
            "area": round(_polygon_area(thing.polygon), 2),
            "bbox": [thing.box[0], thing.box[1], thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]],
            "iscrowd": 0,
        }
        for scene in scenes
        for i, thing in enumerate(scene.things)
    ]
    return record


def annotation_id(scene: Scene, index: int) -> int:
    """Returns the id of the COCO annotation of thing number `index`."""
    return scene.image_id * 10 + index


def questions_record(split: Split, questions: dict[int, list[Question]]) -> dict[str, Any]:
    """Returns VQA v2 questions. questions: by image id, as in answers_record."""
    rows = [
        {"image_id": image_id, "question": question.text, "question_id": image_id * 1000 + i}
        for image_id, asked in questions.items()
        for i, question in enumerate(asked)
    ]
    header = {"task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": split.name}
    return {"info": {"description": f"scenes {split.name}"}, "license": {}, **header, "questions": rows}


def answers_record(split: Split, questions: dict[int, list[Question]]) -> dict[str, Any]:
    """Returns VQA v2 annotations, with ten equal answers for each question."""
    rows = [
        {
            "question_id": image_id * 1000 + i,
            "image_id": image_id,
            "question_type": question.kind,
            "answer_type": question.answer_type,
            "multiple_choice_answer": question.answer,
            "answers": [{"answer": question.answer, "answer_confidence": "yes", "answer_id": n + 1} for n in range(10)],
        }
        for image_id, asked in questions.items()
        for i, question in enumerate(asked)
    ]
    header = {"data_type": "mscoco", "data_subtype": split.name}
    return {"info": {"description": f"scenes {split.name}"}, "license": {}, **header, "annotations": rows}


# ---- VCR ----


def vcr_metadata(scene: Scene, boxes: np.ndarray, scores: Sequence[float]) -> dict[str, Any]:
    """Returns the metadata of an image. boxes: [n, 4] xyxy of its n things in order. scores: n, of the detector."""
    return {
        "boxes": [[*map(float, box), score] for box, score in zip(boxes, scores, strict=True)],
        "segms": [[[list(point) for point in thing.polygon]] for thing in scene.things],
        "names": [VCR_CATEGORY] * len(scene.things),
        "width": scene.width,
        "height": scene.height,
    }


def vcr_annotations(split: Split, scene: Scene, problems: Sequence[Problem], first: int) -> list[dict[str, Any]]:
    """Returns the annotations of an image, one for each problem, without labels in a split without answers.

    first: the number of annotations before them in the split.
    """
    image = image_name(split, scene.image_id)
    rows = []
    for i, problem in enumerate(problems):
        row: dict[str, Any] = {
            "movie": f"scenes_{split.name}",
            "objects": [VCR_CATEGORY] * len(scene.things),
            "img_fn": f"{image}.jpg",
            "metadata_fn": f"{image}.json",
            "question": problem.question,
            "question_orig": _plain(problem.question),
            "question_type": problem.kind,
            "answer_choices": list(problem.answers.texts),
            "rationale_choices": list(problem.rationales.texts),
            "img_id": f"{split.vcr}-{scene.image_id}",
            "question_number": i,
            "annot_id": f"{split.vcr}-{first + i}",
            "match_fold": f"{split.vcr}-0",
            "match_index": first + i,
        }
        if split.has_answers:
            right, reason = problem.answers, problem.rationales
            row |= {"answer_label": right.label, "answer_orig": _plain(right.texts[right.label])}
            row |= {"rationale_label": reason.label, "rationale_orig": _plain(reason.texts[reason.label])}
        rows.append(row)
    return rows


def _plain(tokens: Tokens) -> str:
    """Returns mixed tokens in the form of the annotators of VCR: things by numbers from 1, in square brackets."""
    words = [t if isinstance(t, str) else " and ".join(f"[{VCR_CATEGORY}{i + 1}]" for i in t) for t in tokens]
    return " ".join(words)


# ---- RefCOCO+ ----


def refer_split(split: Split, scene: Scene) -> str:
    """All splits of RefCOCO+ use COCO training images: of every eight, five for train and one for each other split."""
    return {1: "val", 2: "testA", 3: "testB"}.get((scene.image_id - split.first_id) % 8, "train")


def reference_records(
    split: Split, scenes: Sequence[Scene], expressions: dict[int, list[list[Expression]]]
) -> list[dict[str, Any]]:
    """Returns the list in `refs(unc).p`, of all things that have an expression.

    expressions: by image id, for each thing of the scene. The real data has no key "kind" in a sentence.
    """
    records: list[dict[str, Any]] = []
    sent_id = 0
    for scene in scenes:
        for i, found in enumerate(expressions[scene.image_id]):
            if not found:
                continue
            sentences = [
                {"sent_id": sent_id + n, "raw": e.text, "sent": e.text, "tokens": e.text.split(), "kind": e.kind}
                for n, e in enumerate(found)
            ]
            sent_id += len(found)
            records.append(
                {
                    "ref_id": len(records),
                    "ann_id": annotation_id(scene, i),
                    "category_id": SHAPES.index(scene.things[i].shape) + 1,
                    "image_id": scene.image_id,
                    "file_name": f"{image_name(split, scene.image_id)}_{i}.jpg",
                    "split": refer_split(split, scene),
                    "sent_ids": [sentence["sent_id"] for sentence in sentences],
                    "sentences": sentences,
                }
            )
    return records


def detection_records(scene: Scene, rng: Random, boxes: np.ndarray, first: int) -> list[dict[str, Any]]:
    """Returns detections of an image in the format of MAttNet, whose sides count both border pixels. Omits a few boxes.

    boxes: [n, 4] xyxy, n >= 1, of a detector. first: the number of detections before them.
    """
    kept = [box for box in boxes.tolist() if rng.random() < 0.93] or boxes[:1].tolist()
    records = []
    for i, (x1, y1, x2, y2) in enumerate(kept):
        category = rng.randrange(len(SHAPES))
        records.append(
            {
                "det_id": first + i,
                "h5_id": first + i,
                "image_id": scene.image_id,
                "category_id": category + 1,
                "category_name": SHAPES[category],
                "box": [x1, y1, x2 - x1 + 1, y2 - y1 + 1],
                "score": round(rng.uniform(0.65, 1.0), 4),
            }
        )
    return records


# ---- captions ----


def caption_records(split: Split, scene: Scene, captions: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the lines of Conceptual Captions. Image and region file are those of VQA, relative to a folder beside."""
    image = f"../{split.name}/{image_name(split, scene.image_id)}.jpg"
    frcnn = f"../{REGION_FOLDER}/{split.region_folder}/{scene.image_id}.json"
    return [{"image": image, "caption": text.split(), "frcnn": frcnn} for text in captions]


def _polygon_area(polygon: Sequence[tuple[float, float]]) -> float:
    """The shoelace formula."""
    pairs = zip(polygon, (*polygon[1:], polygon[0]), strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs)) / 2

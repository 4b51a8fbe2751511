"""Referring expressions of the user's own as the files of RefCOCO+, which `refcoco` reads.

{"id": 7, "image": "a/x.jpg", "boxes": [[x1, y1, x2, y2], ...], "expression": "the dog on the left",
 "box": [x1, y1, x2, y2]}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from common.boxes import iou
from common.config.table import from_task
from data.own.images import Boxes, Images, UserImage, read_box
from data.own.lines import Problems
from data.own.recipe import Recipe, TaskKeys
from data.own.regions import POSITIVE_IOU
from data.own.task import OwnTask, Parts, Sample, Settings, write_json

CATEGORY = {"id": 1, "name": "thing"}
DATASET = "refcoco+"


class OwnRefCOCO(OwnTask):
    """The target of a sample is the box of the referent.

    Without a source of boxes the candidates of an image are the boxes of its records, referents included (box mode
    gt). With a source they are the regions of the image (box mode proposal); training adds the referents that no
    region stands for.
    """

    name, title = "refcoco", "Referring expressions"
    text_key, keys = "expression", ("box",)
    columns = {"text": "expression"}
    number_key = "sent_id"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._folder = from_task("refcoco", "files", "IMAGE_FOLDER")
        self._instances = from_task("refcoco", "files", "INSTANCES_FILE")
        self._image_file = from_task("refcoco", "candidates", "image_file")

    @property
    def _proposals(self) -> bool:
        return self.settings.boxes is not None

    def read_target(self, fields: dict[str, Any], boxes: Boxes | None, required: bool) -> tuple[float, ...]:
        if "box" not in fields:
            raise ValueError("no box, which the expression refers to")  # the accuracy of test needs it too
        return read_box(fields["box"])

    def prepare(self, parts: Parts, images: Images, problems: Problems) -> None:
        held_out = {s.image.number for part, samples in parts.items() if part != "train" for s in samples}
        targets: dict[int, list[tuple[float, ...]]] = {}
        for sample in (sample for samples in parts.values() for sample in samples):
            width, height = sample.image.size
            if sample.target[2] > width or sample.target[3] > height:
                problems.add(sample.record.line, f"box lies outside of the image, which has {width} x {height} pixels")
            targets.setdefault(sample.image.number, []).append(sample.target)
        for image in images:
            found = tuple(dict.fromkeys(targets.get(image.number, [])))
            if not self._proposals:
                image.boxes = tuple(dict.fromkeys([*(image.boxes or ()), *found]))
            elif image.number not in held_out:
                image.required = found

    def texts(self, samples: Sequence[Sample]) -> Iterable[str]:
        return [sample.record.text for sample in samples]

    def write(self, folder: Path, parts: Parts) -> None:
        samples = [(part, sample) for part, found in parts.items() for sample in found]
        images = {sample.image.number: sample.image for _, sample in samples}
        ids: dict[tuple[int, tuple[float, ...]], int] = {}
        for number, image in images.items():
            image.place(folder / self._folder / self._image_file(number), self.settings.link)
            for box in () if self._proposals else image.boxes or ():
                ids.setdefault((number, box), len(ids) + 1)
        for _, sample in samples:
            ids.setdefault((sample.image.number, sample.target), len(ids) + 1)
        references = [_reference(part, s, ids[s.image.number, s.target]) for part, s in samples]
        instances = {
            "images": [_image_row(image, self._image_file(number)) for number, image in images.items()],
            "annotations": [_annotation(id_, number, box) for (number, box), id_ in ids.items()],
            "categories": [CATEGORY],
        }
        write_json(folder / self._instances, instances)
        write_json(folder / DATASET / "instances.json", instances)
        write_json(folder / DATASET / "refs(unc).json", references)

    def yamls(self, recipe: Recipe) -> dict[str, TaskKeys]:
        boxes = "proposal" if self._proposals else "gt"
        dataset = f"""\
  DATASET: {DATASET}
  TRAIN_IMAGE_SET: train
  VAL_IMAGE_SET: val
  TEST_IMAGE_SET: {"test" if recipe.test else "val"}
  TRAIN_BOXES: {boxes}  # candidates: {"the regions of an image" if self._proposals else "the boxes of the records"}
  VAL_BOXES: {boxes}
  TEST_BOXES: {boxes}
  PROPOSAL_SOURCE: vg  # with TRAIN_BOXES proposal: the regions in REGION_PATH
"""
        network = "  CLASSIFIER_DROPOUT: 0.0\n"
        flip = "0.5  # flips also swap the words left and right; 0.0 where the images contain writing"
        return {"refcoco.yaml": TaskKeys("ResNetVLBERT", "expressions", dataset, network, flip=flip)}

    def summary(self, part: str, samples: Sequence[Sample]) -> str:
        """The share of expressions that can be answered, and the images where there is nothing to choose."""
        hits, single = 0, set()
        for sample in samples:
            boxes = sample.image.found
            assert boxes is not None, "regions are written before"
            hits += bool((iou(boxes, torch.tensor([sample.target])) > POSITIVE_IOU).any())
            if len(boxes) == 1:
                single.add(sample.image.number)
        text = f"{100 * hits / len(samples):.1f} % with the referent among the candidates"
        return text + (f", {len(single)} images with a single candidate" if single else "")


def _reference(part: str, sample: Sample, annotation: int) -> dict[str, Any]:
    sentence = {"sent_id": sample.number, "tokens": sample.record.text.lower().split(), "sent": sample.record.text}
    return {
        "ref_id": sample.number,
        "ann_id": annotation,
        "image_id": sample.image.number,
        "category_id": CATEGORY["id"],
        "split": part,
        "sentences": [sentence],
    }


def _image_row(image: UserImage, file: str) -> dict[str, Any]:
    return {"id": image.number, "width": image.size[0], "height": image.size[1], "file_name": file}


def _annotation(id_: int, image: int, box: tuple[float, ...]) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return {
        "id": id_,
        "image_id": image,
        "category_id": CATEGORY["id"],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
    }

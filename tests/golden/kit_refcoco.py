"""Items and batches of RefCOCO+ in the reference's form: [CLS] expression [SEP] stripped to the expression."""

from __future__ import annotations

import json
import random
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.data.collate import collate
from common.data.sample import Sample
from refcoco.dataset import RefCOCODataset
from refcoco.files import DETECTIONS_FILE
from tests.golden.batches import images_of
from tests.golden.core import Case
from tests.golden.kit_coco import linked_coco

ID_KEY = "sent_id"

_kept: list[tempfile.TemporaryDirectory[str]] = []


def config_changes(case: Case) -> dict[str, Any]:
    return {"DATASET.DATASET_PATH": str(linked_refcoco(case.data))}


@lru_cache
def linked_refcoco(data: Path) -> Path:
    """A folder of links to the kit's `coco`, with the generated detections of the README (file 3)."""
    coco = linked_coco(data)
    _kept.append(tempfile.TemporaryDirectory(prefix="golden-refcoco-"))
    folder = Path(_kept[-1].name)
    _link(coco, folder, leave_out="refcoco+")
    (folder / "refcoco+").mkdir()
    _link(coco / "refcoco+", folder / "refcoco+", leave_out="proposal")
    write_detections(coco, folder / "refcoco+" / DETECTIONS_FILE)
    return folder


def write_detections(coco: Path, path: Path) -> None:
    """The annotated boxes of each image, moved and stretched by the seed of its id."""
    images = json.loads((coco / "refcoco+/instances.json").read_text())["images"]
    annotations = json.loads((coco / "annotations/instances_train2014.json").read_text())["annotations"]
    detections = []
    for image_id in (image["id"] for image in images):
        mine = [a for a in annotations if a["image_id"] == image_id]
        x, y, w, h = np.array([a["bbox"] for a in mine], dtype=float).T
        j = np.random.default_rng(image_id).uniform(-0.3, 0.3, (len(mine), 4))
        moved = [x + j[:, 0] * w, y + j[:, 1] * h, w * (1 + j[:, 2]), h * (1 + j[:, 3])]
        for annotation, box in zip(mine, np.round(np.stack(moved, 1), 2).tolist(), strict=True):
            row = {"image_id": image_id, "category_id": annotation["category_id"], "box": box, "score": 0.9}
            detections.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(detections))


def item(dataset: RefCOCODataset, index: int, sample: Sample) -> dict[str, Any]:
    fields = {
        "image": sample.image,
        "boxes": sample.boxes,
        "im_info": sample.im_info,
        "expression": sample.text_ids[1:-1],
    }
    return fields | sample.targets


def batch(dataset: RefCOCODataset, samples: list[Sample]) -> dict[str, Any]:
    ours = collate(samples)
    expression = ours.text_ids[:, 1:-1].clone()
    lengths = ours.text_mask.sum(1, keepdim=True) - 2
    expression[torch.arange(expression.shape[1])[None] >= lengths] = 0
    return {
        "image": images_of(ours),
        "boxes": ours.boxes.masked_fill(~ours.box_mask[..., None], -2.0),
        "im_info": ours.im_info,
        "expression": expression,
        "label": ours.targets.get("label"),
    }


def whole(dataset: RefCOCODataset) -> dict[str, Any]:
    samples = [dataset.sample(i, random.Random(0)) for i in range(len(dataset))]
    got: dict[str, Any] = {
        "all.ref_id": torch.tensor([e.ref_id for e in dataset.expressions]),
        "all.sent_id": torch.tensor([s.id for s in samples]),
        "all.aspect_group": torch.tensor(list(dataset.group_ids)),
    }
    fields = {"expression": [s.text_ids[1:-1] for s in samples], "boxes": [s.boxes for s in samples]}
    if dataset.with_labels:
        fields["label"] = [s.targets["label"] for s in samples]
    for name, rows in fields.items():
        got[f"all.{name}.len"] = torch.tensor([len(r) for r in rows])
        got[f"all.{name}.flat"] = torch.cat(rows)
    return got


def _link(source: Path, folder: Path, leave_out: str) -> None:
    for entry in source.iterdir():
        if entry.name != leave_out:
            (folder / entry.name).symlink_to(entry)

"""Items and batches of VQA in the reference's form: [CLS] question [SEP] [MASK] [SEP] stripped to the question."""

from __future__ import annotations

import random
from typing import Any

import torch

from common.data.collate import collate
from common.data.sample import Sample
from tests.golden.batches import images_of
from tests.golden.core import Case
from tests.golden.kit_coco import linked_coco
from vqa.dataset import VQADataset

ID_KEY = "question_id"


def config_changes(case: Case) -> dict[str, Any]:
    coco = linked_coco(case.data)
    return {"DATASET.DATASET_PATH": str(coco), "DATASET.ANSWER_VOCAB_FILE": str(coco / "vqa" / "answers_vqa.txt")}


def item(dataset: VQADataset, index: int, sample: Sample) -> dict[str, Any]:
    fields = {
        "image": sample.image,
        "boxes": sample.boxes,
        "features": sample.features,
        "im_info": sample.im_info,
        "question": sample.text_ids[1:-3],
    }
    label = sample.targets.get("label")
    if label is not None:
        fields |= {"label.indices": label.nonzero().flatten(), "label.size": len(label)}
        fields["label.values"] = label[label != 0]
    return fields


def batch(dataset: VQADataset, samples: list[Sample]) -> dict[str, Any]:
    ours = collate(samples)
    question = ours.text_ids[:, 1:-3].clone()
    lengths = ours.text_mask.sum(1, keepdim=True) - 4
    question[torch.arange(question.shape[1])[None] >= lengths] = 0
    padding = ~ours.box_mask[..., None]
    return {
        "image": images_of(ours),
        "boxes": ours.boxes.masked_fill(padding, -2.0),
        "features": None if ours.features is None else ours.features.masked_fill(padding, -2.0),
        "im_info": ours.im_info,
        "question": question,
        "label": ours.targets.get("label"),
    }


def whole(dataset: VQADataset) -> dict[str, Any]:
    samples = [dataset.sample(i, random.Random(0)) for i in range(len(dataset))]
    questions = [s.text_ids[1:-3] for s in samples]
    labels = [s.targets["label"] for s in samples] if "label" in samples[0].targets else []
    indices = [label.nonzero().flatten() for label in labels]
    values = [label[i] for label, i in zip(labels, indices, strict=True)]
    got: dict[str, Any] = {
        "all.im_info": torch.stack([s.im_info for s in samples]),
        "all.n_boxes": torch.tensor([len(s.boxes) for s in samples]),
    }
    got["all.aspect_group"] = torch.tensor(list(dataset.group_ids))
    for name, rows in (("question", questions), ("label_indices", indices), ("label_values", values)):
        if rows:
            got[f"all.{name}.len"] = torch.tensor([len(r) for r in rows])
            got[f"all.{name}.flat"] = torch.cat(rows)
    return got

"""Items and batches of VCR in the reference's form: query and choices apart, as rows of id, tag and alignment id."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from common.data.collate import collate, pad_stack
from common.data.sample import Sample
from common.data.text import align_matrix, block_diagonal
from tests.golden.batches import CLS, SEP, images_of
from tests.golden.core import Case
from vcr.dataset import VCRDataset
from vcr.text import Q2A, Query, TaggedToken, replacement_names

ID_KEY = "annot_id"
PERSON_CLASS = 1
PAD_BOX, PAD_TEXT = -1.0, -2


def config_changes(case: Case) -> dict[str, Any]:
    return {"DATASET.DATASET_PATH": str(case.data / "vcr"), "DATASET.PERSON_NAMES": "walk"}


def item(dataset: VCRDataset, index: int, sample: Sample) -> dict[str, Any]:
    """`sample` must be the last one taken from the data set, whose walk through the names tells where it began."""
    fields = _fields(dataset, index, sample, dataset.next_name - _persons(sample))
    fields["masks"] = fields["masks"].byte()
    return _numbered(fields)


def batch(dataset: VCRDataset, samples: list[Sample]) -> dict[str, Any]:
    first, items = 0, []
    for index, sample in enumerate(samples):
        items.append(_fields(dataset, index, sample, first))
        first += _persons(sample)
    ours = collate(samples)
    padding = ~ours.box_mask
    fields: dict[str, Any] = {"image": images_of(ours)}
    for name in items[0]:
        if name == "boxes":
            fields[name] = pad_stack([i[name] for i in items], PAD_BOX)
        elif name == "masks":
            fields[name] = ours.box_masks.masked_fill(padding[..., None, None], PAD_BOX).char()
        elif name != "image":
            value = PAD_TEXT if name in ("question", "answer_choices", "rationale_choices") else 0
            fields[name] = pad_stack([i[name] for i in items], value)
    return fields


def whole(dataset: VCRDataset) -> dict[str, Any]:
    got: dict[str, list[Any]] = {name: [] for name in ("im_info", "n_boxes", "boxes_sum", "mask_sum")}
    texts: dict[str, list[Tensor]] = {"question": [], "choices": []}
    for index in range(len(dataset)):
        sample = dataset.sample(index, random.Random(0))
        fields = _fields(dataset, index, sample, dataset.next_name - _persons(sample))
        got["im_info"].append(fields["im_info"])
        got["n_boxes"].append(len(sample.boxes))
        got["boxes_sum"].append(fields["boxes"].double().sum())
        got["mask_sum"].append(sample.box_masks.sum().int())
        question = fields["question"]
        texts["question"] += question if isinstance(question, list) else [question]
        texts["choices"] += fields[f"{'answer' if dataset.task == Q2A else 'rationale'}_choices"]
    flat = {f"all.{name}.flat": torch.cat(rows) for name, rows in texts.items()}
    flat |= {f"all.{name}.len": torch.tensor([len(r) for r in rows]) for name, rows in texts.items()}
    return flat | {f"all.{name}": torch.stack([torch.as_tensor(v) for v in values]) for name, values in got.items()}


def _persons(sample: Sample) -> int:
    return int((sample.box_classes == PERSON_CLASS).sum())


def _fields(dataset: VCRDataset, index: int, sample: Sample, first_name: int) -> dict[str, Any]:
    everything = dataset.annotations[index]
    annotation, keep = dataset.sequences.relevant(everything)
    queries = dataset.sequences.queries(annotation, replacement_names(annotation.objects, first_name))
    asked = [_asked(dataset, query) for query in queries]
    _check_text(sample, asked, queries[0].choices)
    name = "answer" if dataset.task == Q2A else "rationale"
    scores = dataset.metadata(everything).boxes[keep, 4:]
    scores = torch.cat([torch.ones(1, 1), scores]) if dataset.sequences.image_box else scores
    fields = {
        "image": sample.image,
        "boxes": torch.cat([sample.boxes, scores, sample.box_classes[:, None].float()], dim=1),
        "masks": sample.box_masks,
        "question": [_rows(*parts) for parts in asked],
        "question_align_matrix": [block_diagonal([_align(part) for part in parts]) for parts in asked],
        f"{name}_choices": [_rows(choice) for choice in queries[0].choices],
        f"{name}_align_matrix": [_align(choice) for choice in queries[0].choices],
        "im_info": torch.cat([sample.im_info, torch.tensor([float(index)])]),
    }
    if len(queries) == 1:
        fields |= {key: fields[key][0] for key in ("question", "question_align_matrix")}
    if sample.targets:
        fields[f"{name}_label"] = sample.targets["label"]
    return fields


def _check_text(sample: Sample, asked: list[list[list[TaggedToken]]], choices: list[list[TaggedToken]]) -> None:
    """The sample must be made of these tokens: [CLS] query [SEP] choice [SEP] for every query and every choice."""
    rows = iter(zip(sample.text_ids, sample.text_tags, strict=True))
    for parts in asked:
        query = [token for part in parts for token in part]
        for choice in choices:
            ids, tags = next(rows)
            assert ids.tolist() == [CLS, *(t.id for t in query), SEP, *(t.id for t in choice), SEP]
            assert tags.tolist() == [0, *(max(t.tag, 0) for t in query), 0, *(max(t.tag, 0) for t in choice), 0]
    assert next(rows, None) is None


def _asked(dataset: VCRDataset, query: Query) -> list[list[TaggedToken]]:
    """Question and answer of the query, as far as they are in it."""
    if query.answer is None:
        return [query.question]
    return [query.answer] if dataset.sequences.no_question else [query.question, query.answer]


def _rows(*parts: Sequence[TaggedToken]) -> Tensor:
    return torch.tensor([list(token) for part in parts for token in part])


def _align(tokens: Sequence[TaggedToken]) -> Tensor:
    return align_matrix([token.align for token in tokens])


def _numbered(fields: dict[str, Any]) -> dict[str, Any]:
    """Lists as one field an entry."""
    got: dict[str, Any] = {}
    for name, value in fields.items():
        got |= {f"{name}.{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {name: value}
    return got

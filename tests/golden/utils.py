"""Golden group G: collation, transforms, numeric helpers and text helpers (golden/README.md, rules and tolerances)."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.boxes import coordinate_embedding, iou
from common.data.collate import clip_pad, collate, pad_stack
from common.data.sample import Batch, Sample
from common.data.text import align_matrix, block_diagonal, load_tokenizer, swap_left_right
from common.data.transforms import Transform, resize_size
from common.nn.bert import activation
from common.nn.losses import soft_cross_entropy
from tests.golden.core import Case, Report
from vcr.masks import instance_mask
from vcr.text import GENDER_NEUTRAL_NAMES, keep_relevant_detections, tokenize_with_tags
from vqa.answers import AnswerVocabulary, process_punctuation, soft_target

NOT_PORTED = ("masked_softmax", "nonlinear_transform", "get_all_ngrams", "random_word_with_token_ids")


def run(case: Case, report: Report) -> None:
    runners = {"BatchCollator": _collate, "transforms": _transforms, "utils": _utils, "text helpers": _text}
    runners[case.json["class"]](case, report)


# ---- BatchCollator ----

TEXT_NAMES = ("question", "expression", "text", "answer_choices", "rationale_choices")
TARGET_PADS = {"mlm_labels": -1, "mvrc_ops": 0, "mvrc_labels": 0}


def _collate(case: Case, report: Report) -> None:
    names = {name[3:] for name in (entry["array"] for entry in case.json["inputs"] if entry.get("array"))}
    for spec in case.json["collators"]:
        task = spec["task"]
        count = len({name.split(".")[1] for name in names if name.startswith(f"{task}.")})
        samples = [
            {name: _field(case, names, f"{task}.s{i}.{name}") for name in spec["data_names"]} for i in range(count)
        ]
        for name in spec["outputs"]:
            want = case.arrays.get(f"out.{task}.{name}")  # None: the entry is None
            if name == "index":
                report.note(f"{task}.index: APPEND_INDEX is not ported, samples carry their id")
            else:
                report.equal(f"{task}.{name}", _collated(task, name, samples), want)


def _field(case: Case, names: set[str], key: str) -> Any:
    """A field of a sample: a tensor, None, or a list of tensors where the arrays are numbered."""
    if key in names:
        return torch.from_numpy(case.array(f"in.{key}"))
    numbered = sorted(
        (name for name in names if name.startswith(f"{key}.")), key=lambda name: int(name.rsplit(".", 1)[1])
    )
    return [torch.from_numpy(case.array(f"in.{name}")) for name in numbered] or None


def _collated(task: str, name: str, samples: list[dict[str, Any]]) -> Any:
    """Field `name` of our batch as the reference collates it, with its fill values where our masks are False."""
    vcr = task.startswith("vcr")
    text = name if name in TEXT_NAMES else next(n for n in TEXT_NAMES if n in samples[0])
    batch = collate([_sample(i, sample, text, name) for i, sample in enumerate(samples)])
    if name == "boxes":
        parts = batch.boxes if batch.features is None else torch.cat([batch.boxes, batch.features], dim=-1)
        return _fill(parts, batch.box_mask, -1 if vcr else -2)
    if name == "masks":
        return _fill(_required(batch.box_masks), batch.box_mask, -1)
    if name in TEXT_NAMES:
        return _text_field(batch) if vcr else batch.text_ids
    if name == "image":
        return batch.image
    return batch.im_info if name == "im_info" else batch.targets[name]


def _sample(index: int, fields: dict[str, Any], text: str, name: str) -> Sample:
    boxes = fields.get("boxes", torch.zeros(0, 4))  # text-only samples have no image
    columns = [_column(fields[text], k) for k in range(3)]
    known = (*TEXT_NAMES, "image", "boxes", "masks", "im_info")
    target = {} if name in known else {name: fields[name]}
    if isinstance(target.get(name), list):  # one matrix a choice
        target = {name: pad_stack(fields[name], 0)}
    pad = -1 if name == "label" else TARGET_PADS.get(name, 0)
    return Sample(
        id=index,
        im_info=fields.get("im_info", torch.zeros(4)),
        boxes=boxes[:, :4],
        features=boxes[:, 4:] if boxes.shape[1] > 4 else None,
        image=fields.get("image"),
        box_masks=fields.get("masks"),
        text_ids=columns[0],
        segment_ids=columns[1],
        text_tags=columns[2],
        targets=target,
        target_pads={name: pad},
    )


def _column(text: Any, k: int) -> Any:
    """Column k of the vcr triples (id, tag, align id), or the ids themselves."""
    if isinstance(text, list):
        return [_column(t, k) for t in text]
    return text[:, k] if text.dim() == 2 else text


def _text_field(batch: Batch) -> Tensor:
    triples = torch.stack([batch.text_ids, batch.segment_ids, _required(batch.text_tags)], dim=-1)
    return _fill(triples, batch.text_mask, -2)


def _required(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def _fill(x: Tensor, mask: Tensor, value: float) -> Tensor:
    return x.masked_fill(~mask.reshape(*mask.shape, *[1] * (x.dim() - mask.dim())), value)


# ---- transforms ----


def _transforms(case: Case, report: Report) -> None:
    for entry in case.json["outputs"]:
        if match := re.fullmatch(r"out\.(get_size\.\w+)\.(\d+)_(\d+)", entry["array"]):
            table = case.array(entry["array"])
            limits = int(match[2]), int(match[3])
            got = [[w, h, *resize_size(w, h, *limits)] for w, h in table[:, :2].tolist()]
            report.equal(entry["array"][4:], got, table)
    for spec in case.json["pipelines"]:
        _pipeline(spec, case, report)


def _pipeline(spec: dict[str, Any], case: Case, report: Report) -> None:
    key, vcr = spec["key"], spec["task"] == "vcr"
    means, stds = tuple(spec["PIXEL_MEANS"]), tuple(spec["PIXEL_STDS"])
    transform = Transform(tuple(spec["SCALES"]), means, stds, float(spec["flip"]), fixed_padding=vcr)
    image = Image.fromarray(case.array("in.image_u8"))
    im_info = torch.tensor([*image.size, 1, 1], dtype=torch.float32)
    masks = torch.from_numpy(case.array("in.masks")) if vcr else None
    result = transform(image, torch.from_numpy(case.array("in.boxes")), im_info, masks, random.Random(0))

    assert result.image is not None
    report.equal(f"{key}.full_shape", list(result.image.shape), spec["full_shape"])
    report.equal(f"{key}.resized_wh", result.im_info[:2].tolist(), spec["resized_wh"])
    if spec["flipped_out"] is not None:
        report.equal(f"{key}.flipped", int(result.flipped), int(spec["flipped_out"]))
    pixels, stride = result.image.double(), spec["image_stride"]
    report.close(f"{key}.image_sum", pixels.sum().item(), spec["image_sum"])
    report.close(f"{key}.image_l2", pixels.norm().item(), spec["image_l2"])
    got = {"image": result.image[:, ::stride, ::stride], "boxes": result.boxes, "im_info": result.im_info}
    if vcr:
        got["masks"] = _required(result.masks)
    for name, value in got.items():
        report.close(f"{key}.{name}", value, case.array(f"out.{key}.{name}"))


# ---- utils ----


def _utils(case: Case, report: Report) -> None:
    for call in case.json["calls"]:
        name = call["function"]
        if name in NOT_PORTED:
            report.note(f"not ported (original 2.41): {name}")
            continue
        args = [_argument(case, arg) for arg in call["args"]]
        kwargs = {key: _argument(case, value) for key, value in call["kwargs"].items()}
        got = FUNCTIONS[name](*args, **kwargs)
        if match := re.search(r"subsampled ::(\d+)", call.get("note", "")):
            got = got[..., :: int(match[1])]
        report.close(call["output"], got, case.array(f"out.{call['output']}"))
    if "ngrams" in case.json:
        report.note("not ported (original 2.41): get_all_ngrams")


def _argument(case: Case, arg: Any) -> Any:
    """A call's argument: the name of an array, "list(name)", a list of them, or a value."""
    if isinstance(arg, list):
        return [_argument(case, a) for a in arg]
    if not isinstance(arg, str):
        return arg
    if match := re.fullmatch(r"list\((.+)\)", arg):
        return list(case.array(match[1]))
    array = case.arrays.get(arg)
    return arg if array is None else torch.from_numpy(np.asarray(array))


def _instance_mask(polygons: list[Any], box: Any, mask_size: list[int], **_: Any) -> np.ndarray:
    assert mask_size[0] == mask_size[1], "masks are square here"
    return instance_mask(polygons, box, mask_size[0])


def _clip_pad_rows(x: Any, rows: int, pad: float = 0) -> Tensor:
    x = torch.as_tensor(x)
    return clip_pad(x, (rows, *x.shape[1:]), pad)


def _clip_pad_last_two(x: Any, shape: list[int], pad: float = 0) -> Tensor:
    x = torch.as_tensor(x)
    return clip_pad(x, (*x.shape[:-2], *shape[-2:]), pad)


FUNCTIONS = {
    "soft_cross_entropy": soft_cross_entropy,
    "coordinate_embeddings": lambda boxes, dim: coordinate_embedding(boxes[:, :4], boxes[:, 4:], dim).unflatten(
        1, (4, -1)
    ),
    "bbox_iou_py_vectorized": iou,
    "generate_instance_mask": _instance_mask,
    "get_align_matrix": lambda ids, **_: align_matrix(ids),
    "block_digonal_matrix": lambda *blocks: block_diagonal(blocks),
    "clip_pad_images": _clip_pad_last_two,
    "clip_pad_boxes": _clip_pad_rows,
    "clip_pad_1d": _clip_pad_rows,
    "clip_pad_2d": _clip_pad_last_two,
    "pad_sequence": lambda rows, lengths: pad_stack(torch.split(rows, list(lengths)), 0),
    "gelu": activation("gelu"),
    "swish": activation("swish"),
}


# ---- text helpers ----


def _text(case: Case, report: Report) -> None:
    data, tokenizer = case.json, load_tokenizer(case.json["vocab"])
    for i, row in enumerate(data.get("tokenize", [])):
        tokens = tokenizer.tokenize(row["text"])
        report.equal(f"tokenize.{i}.basic", tokenizer.basic_tokenize(row["text"]), row["basic"])
        report.equal(f"tokenize.{i}.tokens", tokens, row["tokens"])
        report.equal(f"tokenize.{i}.ids", tokenizer.ids(tokens), row["ids"])
    for i, row in enumerate(data.get("flip_tokens", [])):
        for task in ("vqa", "refcoco"):
            report.equal(f"flip_tokens.{i}.{task}", swap_left_right(row["tokens"]), row[task])
    if "vcr_gender_neutral_names" in data:
        report.equal("vcr_gender_neutral_names", list(GENDER_NEUTRAL_NAMES), data["vcr_gender_neutral_names"])
    for i, row in enumerate(data.get("vcr_retokenize", [])):
        names, tag = row["objects_replace_name"], row["non_obj_tag"]
        got = tokenize_with_tags(row["tokens"], names, tokenizer, row["basic_align"], tag)
        report.equal(f"vcr_retokenize.{i}", [list(token) for token in got], row["ids_tags_align"])
    if "vcr_retokenize" in data:
        report.note("vcr_retokenize raw words: nothing reads them (original 8.4)")
    for i, row in enumerate(data.get("vcr_keep_only_relevant_dets", [])):
        kept = keep_relevant_detections(row["question"], row["answers"], row["rationales"])
        report.equal(f"vcr_keep_only_relevant_dets.{i}.dets_to_use", kept.keep, row["dets_to_use"])
        for name in ("question", "answers", "rationales"):
            got = getattr(kept, name)
            report.equal(f"vcr_keep_only_relevant_dets.{i}.{name}_out", got, row[f"{name}_out"])
    _answers(data, report)


def _answers(data: dict[str, Any], report: Report) -> None:
    if "vqa_soft_target" in data:
        vocabulary = AnswerVocabulary(data["vqa_soft_target"]["answer_vocab"])
        for i, row in enumerate(data["vqa_soft_target"]["rows"]):
            report.close(f"vqa_soft_target.{i}", soft_target(row["answers"], vocabulary), row["target"])
    for i, row in enumerate(data.get("vqa_process_punctuation", [])):
        report.equal(f"vqa_process_punctuation.{i}", process_punctuation(row["in"]), row["out"])

"""Group K: items and batches of the datasets on the data kit."""

from __future__ import annotations

import importlib
import json
import random
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.config import load_config
from common.data.batch import Batch, Sample
from common.data.collate import collate
from common.data.regions import Regions, save_regions
from tests.golden.core import REPOSITORY, Case, Report, Skip

BATCH = 4
FEATURE_DIM = 2048
ATOL_BOX, ATOL_PIXEL = 1e-3, 0.02
READERS = {"vqa": "VQADataset", "vcr": "VCRDataset", "refcoco": "RefCOCODataset", "pretrain": "ConceptualCaptions"}


def run(case: Case, report: Report) -> None:
    task = case.json["task"]
    try:
        module = importlib.import_module(f"{task}.dataset")
    except ModuleNotFoundError:
        raise Skip(f"{task} {READERS[task]}") from None
    reference = ENCODERS[task]
    cfg = _config(case)
    dataset = module.build_dataset(cfg, case.json["mode"])
    report.equal("length", len(dataset), case.json["dataset_length"])
    got: dict[str, Any] = {}
    seed = case.json.get("random_seed")
    for i, item in enumerate(case.json["items"]):
        sample = dataset.sample(item["index"], random.Random(seed))
        report.equal(f"item{i} id", sample.id, item["question_id"])
        got |= _item_arrays(f"item{i}", reference.item(sample))
    if case.json.get("batch"):
        samples = [dataset.sample(i, random.Random(seed)) for i in range(min(BATCH, len(dataset)))]
        got |= _batch_arrays("batch0", reference.batch(collate(samples)))
    if any(o["array"].startswith("all.") for o in case.json["outputs"]):
        got |= reference.whole(dataset)
    for output in case.json["outputs"]:
        _compare(case, report, output, got)


def _config(case: Case) -> Any:
    """The case's YAML, then the folders and loader settings of the README, then the overrides."""
    coco = linked_coco(case.data)
    changes: dict[str, Any] = {
        "DATASET.DATASET_PATH": str(coco),
        "DATASET.ANSWER_VOCAB_FILE": str(coco / "vqa" / "answers_vqa.txt"),
        "NETWORK.BERT_MODEL_NAME": str(case.vocab / "bert-base-uncased"),
        "TRAIN.SHUFFLE": False,
        "TRAIN.ASPECT_GROUPING": False,
        **{f"{mode}.BATCH_IMAGES": BATCH for mode in ("TRAIN", "VAL", "TEST")},
    }
    return load_config(case.json["task"], REPOSITORY / case.json["cfg"], changes | case.overrides)


# ---------------------------------------------------------------------------------------------- generated files

_kept: list[tempfile.TemporaryDirectory[str]] = []


@lru_cache
def linked_coco(data: Path) -> Path:
    """A folder like the kit's `coco`, with the generated region files of the README beside links to what is there."""
    _kept.append(tempfile.TemporaryDirectory(prefix="golden-kit-"))
    coco = Path(_kept[-1].name) / "coco"
    coco.mkdir()
    for entry in (data / "coco").iterdir():
        (coco / entry.name).symlink_to(entry)
    folder = coco / "vgbua_res101_precomputed" / "trainval2014_resnet101_faster_rcnn_genome"
    for split in ("train2014", "val2014"):
        write_regions(data / "coco" / "annotations" / f"instances_{split}.json", folder)
    return coco


def write_regions(instances: Path, folder: Path) -> None:
    """Boxes of the annotations, features by the seed of the image id."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.loads(instances.read_text())
    for image in content["images"]:
        i, width, height = image["id"], image["width"], image["height"]
        rows = [a["bbox"] for a in content["annotations"] if a["image_id"] == i]
        boxes = np.array(
            [[x, y, x + w - 1, y + h - 1] for x, y, w, h in rows] or [[0, 0, width - 1, height - 1]], float
        )
        boxes[:, 0::2] = boxes[:, 0::2].clip(0, width - 1)
        boxes[:, 1::2] = boxes[:, 1::2].clip(0, height - 1)
        features = np.abs(np.random.default_rng(i).standard_normal((len(boxes), FEATURE_DIM)))
        regions = Regions(
            torch.from_numpy(boxes.astype(np.float32)),
            torch.from_numpy(features.astype(np.float32)),
            width=width,
            height=height,
        )
        save_regions(folder, str(i), regions)


# ---------------------------------------------------------------------------------------------- our samples as theirs


class VQAEncoder:
    """[CLS] question [SEP] [MASK] [SEP] stripped to the question; boxes and features as separate fields."""

    @staticmethod
    def item(sample: Sample) -> dict[str, Any]:
        return {
            "image": sample.image,
            "boxes": sample.boxes,
            "features": sample.features,
            "im_info": sample.im_info,
            "question": sample.text_ids[1:-3],
            "label": sample.targets.get("label"),
        }

    @staticmethod
    def batch(batch: Batch) -> dict[str, Any]:
        question = batch.text_ids[:, 1:-3].clone()
        lengths = batch.text_mask.sum(1, keepdim=True) - 4
        question[torch.arange(question.shape[1])[None] >= lengths] = 0
        features = None
        if batch.features is not None:
            features = batch.features.masked_fill(~batch.box_mask[..., None], -2.0)
        return {
            "image": batch.image,
            "boxes": batch.boxes.masked_fill(~batch.box_mask[..., None], -2.0),
            "features": features,
            "im_info": batch.im_info,
            "question": question,
            "label": batch.targets.get("label"),
        }

    @staticmethod
    def whole(dataset: Any) -> dict[str, Any]:
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


ENCODERS = {"vqa": VQAEncoder}


# ---------------------------------------------------------------------------------------------- arrays and tolerances


def _item_arrays(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    got = _common_arrays(name, fields)
    label = fields.get("label")
    if label is not None:
        got |= {f"{name}.label.indices": label.nonzero().flatten(), f"{name}.label.size": len(label)}
        got[f"{name}.label.values"] = label[label != 0]
    return got


def _batch_arrays(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    return _common_arrays(name, fields) | {f"{name}.label": fields.get("label")}


def _common_arrays(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    got: dict[str, Any] = {f"{name}.{k}": fields[k] for k in ("boxes", "im_info", "question")}
    image: Tensor | None = fields["image"]
    got[f"{name}.image"] = image
    if image is not None:
        height, width = image.shape[-2:]
        rows, columns = (torch.arange(16) * (side - 1) // 15 for side in (height, width))
        got[f"{name}.image.shape"] = torch.tensor(image.shape)
        got[f"{name}.image.grid"] = image[..., rows, :][..., columns]
        got[f"{name}.image.mean"] = image.double().mean((-2, -1))
    if fields["features"] is not None:
        features = fields["features"].double()
        got[f"{name}.boxes.feat_sum"], got[f"{name}.boxes.feat_l2"] = features.sum(-1), features.norm(dim=-1)
    return got


def _compare(case: Case, report: Report, output: dict[str, Any], got: dict[str, Any]) -> None:
    name = output["array"]
    if name not in got:
        report.fail(name, "not among what our dataset gives")
        return
    if output.get("value", 0) is None:
        report.equal(f"{name} is None", got[name], None)
        return
    want, leaf = case.array(name), name.rsplit(".", 1)[-1]
    if leaf in ("grid", "mean"):
        report.close(name, got[name], want, ATOL_PIXEL, 0)
    elif leaf == "boxes":
        report.close(name, got[name], want, ATOL_BOX, 0)
    elif leaf == "im_info":
        report.close(name, got[name], want, 0, 1e-6)
        report.equal(f"{name} size", got[name][..., :2], want[..., :2])
    elif leaf in ("feat_sum", "feat_l2"):
        report.close(name, got[name], want, 0, 1e-5)
    elif leaf in ("values", "label") or name == "all.label_values.flat":
        report.close(name, got[name], want, 1e-6, 0)
    else:
        report.equal(name, torch.as_tensor(got[name]), want)

"""Items and batches of pretraining in the reference's form, which has a label row for every region."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.config import replace
from common.data.collate import collate
from common.data.dataset import TaskDataset
from common.data.loader import BatchLoader, MultiLoader
from common.data.sample import Batch, Sample
from common.data.text import load_tokenizer
from common.regions.json_store import save_regions
from common.regions.regions import Regions
from pretrain.captions import CaptionDataset
from pretrain.corpus import GeneralCorpus
from pretrain.dataset import build_dataset
from pretrain.masking import WordMasker, mask_regions
from tests.golden.batches import images_of
from tests.golden.core import Case, Report
from tests.golden.kit_coco import FEATURE_DIM, clipped_boxes

ID_KEY = "index"
CLASSES = 1601
EVERY = 50

_kept: list[tempfile.TemporaryDirectory[str]] = []


def config_changes(case: Case) -> dict[str, Any]:
    """A batch size for each data set of a list. The relationship head has the pooler that it needs."""
    path = str(linked_captions(case.data))
    if "withouttextonly" in case.json["cfg"]:
        changes: dict[str, Any] = {"DATASET.DATASET_PATH": path}
    else:
        changes = {"DATASET.0.DATASET_PATH": path}
        changes |= {f"{mode}.BATCH_IMAGES": [4, 4] for mode in ("TRAIN", "VAL", "TEST")}
        corpus = case.data / "en_corpus"
        changes["DATASET.1.TRAIN_ANNOTATION_FILE"] = f"{corpus}/bc1g.doc+{corpus}/wiki.doc"
    if case.overrides.get("NETWORK.WITH_REL_LOSS"):
        changes["NETWORK.VLBERT.with_pooler"] = True
    return changes


@lru_cache
def linked_captions(data: Path) -> Path:
    """A folder of links to the captions of the kit, with the generated detector files of the README (file 2)."""
    _kept.append(tempfile.TemporaryDirectory(prefix="golden-captions-"))
    source, folder = data / "conceptual-captions", Path(_kept[-1].name)
    for entry in source.iterdir():
        (folder / entry.name).symlink_to(entry)
    content = json.loads((source / "coco_instances.json").read_text())
    for split in ("train", "val"):
        rows = [json.loads(line) for line in (source / f"{split}.json").read_text().splitlines()]
        for row in rows:
            stem = Path(row["image"]).stem
            save_regions(folder / f"{split}_frcnn", stem, detected(content, row["coco_id"]))
            row["frcnn"] = f"{split}_frcnn.zip@/{stem}.json"
        (folder / f"{split}_frcnn.json").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return folder


def detected(content: dict[str, Any], image_id: int) -> Regions:
    """Annotated boxes, with features and class scores by the seed of the image id."""
    image = next(i for i in content["images"] if i["id"] == image_id)
    boxes = clipped_boxes(content["annotations"], image)
    rng = np.random.default_rng(image_id)
    features = np.abs(rng.standard_normal((len(boxes), FEATURE_DIM)))
    z = 3 * rng.standard_normal((len(boxes), CLASSES))
    scores = np.exp(z - z.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    arrays = (torch.from_numpy(array.astype(np.float32)) for array in (boxes, features, scores))
    boxes_, features_, scores_ = arrays
    return Regions(boxes_, features_, class_scores=scores_, width=image["width"], height=image["height"])


def build(cfg: Any, case: Case) -> TaskDataset:
    datasets = build_dataset(cfg, case.json["mode"])
    if isinstance(datasets, TaskDataset):
        return datasets
    return datasets["boxes" not in case.json["data_names"]]


def item(dataset: TaskDataset, index: int, sample: Sample) -> dict[str, Any]:
    if isinstance(dataset, GeneralCorpus):
        return {"image": None, **_text("", collate([sample]), 0)}
    ours = collate([sample])
    fields = {key: value if value is None else value[0] for key, value in _captions(ours).items()}
    return fields | _text("", ours, 0)


def batch(dataset: TaskDataset, samples: list[Sample]) -> dict[str, Any]:
    ours = collate(samples)
    fields = {"image": None} if isinstance(dataset, GeneralCorpus) else _captions(ours)
    return fields | _text("", ours)


def whole(dataset: TaskDataset) -> dict[str, Any]:
    every = EVERY if isinstance(dataset, GeneralCorpus) else 1
    samples = [dataset.sample(i, random.Random(0)) for i in range(0, len(dataset), every)]
    if isinstance(dataset, GeneralCorpus):
        name, rows = "every50th.unmasked_text", [_text("", collate([s]), 0)["unmasked_text"] for s in samples]
        return {f"{name}.len": torch.tensor([len(row) for row in rows]), f"{name}.flat": torch.cat(rows)}
    return {
        "all.text.len": torch.tensor([len(s.text_ids) for s in samples]),
        "all.text.flat": torch.cat([torch.as_tensor(s.text_ids) for s in samples]),
        "all.n_boxes": torch.tensor([len(s.boxes) for s in samples]),
        "all.im_info": torch.stack([_captions(collate([s]))["im_info"][0] for s in samples]),
    }


def _captions(ours: Batch) -> dict[str, Any]:
    """Fields of regions, [B, ...], with the reference's padding."""
    wanted, rows = ours.targets["mvrc_mask"], ours.targets["mvrc_labels"]
    labels = torch.zeros(*wanted.shape, rows.shape[-1])
    labels[wanted] = rows[torch.arange(rows.shape[1]) < wanted.sum(1, keepdim=True)]
    ids = torch.tensor(ours.ids, dtype=torch.float32)[:, None]
    return {
        "image": images_of(ours),
        "boxes": ours.boxes.masked_fill(~ours.box_mask[..., None], -2.0),
        "features": None if ours.features is None else ours.features.masked_fill(~ours.box_mask[..., None], -2.0),
        "im_info": torch.cat([ours.im_info, ids], dim=1),
        "relationship_label": ours.targets["relationship_label"],
        "mvrc_ops": ours.targets["mvrc_ops"],
        "mvrc_labels.argmax": torch.where(wanted, labels.argmax(-1), -1),
        "mvrc_labels.sum": labels.double().sum(-1),
        "mvrc_labels.l2": labels.double().norm(dim=-1),
    }


def _text(prefix: str, ours: Batch, row: int | None = None) -> dict[str, Tensor]:
    """Fields of text, [B, T] or those of one row."""
    labels = ours.targets["mlm_labels"]
    unmasked = torch.where(labels != -1, labels, ours.text_ids)
    fields = {f"{prefix}text": ours.text_ids, f"{prefix}mlm_labels": labels, f"unmasked_{prefix}text": unmasked}
    return fields if row is None else {key: value[row] for key, value in fields.items()}


# ------------------------------------------------------------------------------------------ cases without items


def run(case: Case, report: Report, cfg: Any) -> dict[str, dict[str, Any]]:
    """Fields by batch of a case without items. Its other comparisons are made here."""
    if "statistics" in case.json:
        _check_statistics(case, report, cfg)
        return {}
    return _in_step(case, report, cfg)


class _OneStream(TaskDataset):
    """A data set whose samples draw from one generator, as the reference's do."""

    def __init__(self, dataset: TaskDataset, rng: random.Random) -> None:
        self.dataset, self.rng = dataset, rng

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self, index: int, rng: random.Random) -> Sample:
        return self.dataset.sample(index, self.rng)


def _in_step(case: Case, report: Report, cfg: Any) -> dict[str, dict[str, Any]]:
    rng = random.Random(int(case.json["randomness"].split("random.seed(")[1].split(")")[0]))
    datasets = build_dataset(cfg, case.json["mode"])
    assert isinstance(datasets, list)
    sizes = case.json["batch_sizes"]
    loaders = [BatchLoader(_OneStream(d, rng), n, training=True) for d, n in zip(datasets, sizes, strict=True)]
    loader = MultiLoader(loaders[0], loaders[1:])
    report.equal("length", len(loader), case.json["loader_length"])
    _check_wrap_around(case, report)
    return {
        f"batch{number}": _captions(ours) | _text("", ours) | _text("aux_", ours.auxiliary[0])
        for number, ours in zip(range(3), loader, strict=False)
    }


class _Ids(TaskDataset):
    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def sample(self, index: int, rng: random.Random) -> Sample:
        empty = torch.zeros(0, dtype=torch.int64)
        return Sample(self.ids[index], torch.zeros(4), torch.zeros(0, 4), empty, empty)


def _check_wrap_around(case: Case, report: Report) -> None:
    """Ids of three loaders over three epochs."""
    sets = [(range(100, 107), 2), (range(200, 205), 2), (range(300, 303), 1)]
    master, *others = (BatchLoader(_Ids(list(ids)), size, training=True) for ids, size in sets)
    loader = MultiLoader(master, others)
    for epoch, want in enumerate(case.json["wrap_around"]["epochs"]):
        got = [[b.ids for b in (ours, *ours.auxiliary)] for ours in loader.epoch(epoch)]
        report.equal(f"wrap_around epoch {epoch}", got, want)


def _check_statistics(case: Case, report: Report, cfg: Any) -> None:
    """Shares of our own draws within four standard deviations of the rule (note of the case)."""
    tokenizer = load_tokenizer(case.vocab / "bert-base-uncased")
    rng, count = random.Random(0), Counter[str]()
    masker = WordMasker(tokenizer)
    lines = (case.data / "conceptual-captions" / "gcc_validation_captions.txt").read_text().splitlines()[:2000]
    for word in (w for line in lines for w in tokenizer.basic_tokenize(line)):
        ids, labels = masker([word], rng)
        count["words"] += 1
        if labels[0] == -1:
            continue
        count["masked"] += 1
        count["partial"] += -1 in labels
        kind = "kept" if ids == labels else "to_mask" if set(ids) == {tokenizer.mask_id} else "to_random"
        count[kind] += 1
    for _ in range(2000):
        ops, wanted = mask_regions(7, rng)
        count["regions"] += 7
        count["labelled"] += sum(wanted)
        count["op1"] += sum(ops)
        count["op1 without label"] += sum(op > want for op, want in zip(ops, wanted, strict=True))
    stored = case.json["statistics"]
    for name in ("words", "regions"):
        report.equal(name, count[name], stored[name][name])
    report.equal("partial", (count["partial"], count["op1 without label"]), (0, 0))
    shares = [("masked", "words", 0.15), ("labelled", "regions", 0.15), ("op1", "labelled", 0.9)]
    shares += [("to_mask", "masked", 0.8), ("to_random", "masked", 0.1), ("kept", "masked", 0.1)]
    for part, of, p in shares:
        report.close(f"{part} / {of}", count[part] / count[of], p, 4 * math.sqrt(p * (1 - p) / count[of]), 0)
    dataset = build_dataset(replace(cfg, {"NETWORK.WITH_REL_LOSS": True}), "train")
    assert isinstance(dataset, CaptionDataset)
    matching = sum(int(dataset.sample(0, rng).targets["relationship_label"]) for _ in range(2000))
    report.close("relationship", matching / 2000, 0.5, 4 * math.sqrt(0.25 / 2000), 0)

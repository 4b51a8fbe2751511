"""Real RefCOCO+ expressions and photos of the data kit, with detections made from COCO's own boxes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import load_config
from common.data.collate import collate
from common.regions.json_store import JsonRegions
from refcoco.dataset import RefCOCODataset, build_dataset
from refcoco.outputs import accuracies
from refcoco.refer import REFER
from tests.golden.kit_coco import linked_coco
from tests.golden.kit_refcoco import linked_refcoco
from tests.paths import ROOT

COUNTS = {"train": (23, 65), "val": (3, 9), "testA": (6, 18), "testB": (2, 6)}  # references, expressions


@pytest.fixture(scope="module")
def coco(kit: Path) -> Path:
    return linked_refcoco(kit)


def build(kit: Path, coco: Path, sets: str, boxes: str = "gt", *overrides: str, split: str = "test") -> RefCOCODataset:
    cfg = load_config(
        "refcoco",
        ROOT / "cfgs/refcoco/base_gt_boxes_4x16G.yaml",
        [
            f"DATASET.DATASET_PATH={coco}",
            f"NETWORK.BERT_MODEL_NAME={kit}/vocab/bert-base-uncased",
            f"DATASET.{split.upper()}_IMAGE_SET={sets}",
            f"DATASET.{split.upper()}_BOXES={boxes}",
            *overrides,
        ],
    )
    return build_dataset(cfg, split)


def oracle(dataset: RefCOCODataset) -> list[dict[str, Any]]:
    """Records that choose the target where it is a candidate, else the first candidate."""
    records = []
    for index, expression in enumerate(dataset.expressions):
        choices = dataset.choices(index)
        best = choices.ann_ids.index(expression.ann_id) if expression.ann_id in choices.ann_ids else 0
        records.append({"id": expression.sent_id, "box": choices.boxes[best].tolist(), "candidate": best})
    return records


@pytest.mark.parametrize("split", COUNTS)
def test_every_split_is_found(kit, coco, split):
    references, expressions = COUNTS[split]
    dataset = build(kit, coco, split)
    assert len(dataset) == expressions and len({e.ref_id for e in dataset.expressions}) == references


def test_the_pickle_and_the_json_hold_the_same(coco, tmp_path):
    (tmp_path / "refcoco+").mkdir()
    for name in ("refs(unc).json", "instances.json"):
        (tmp_path / "refcoco+" / name).symlink_to(coco / "refcoco+" / name)
    assert REFER(tmp_path, "refcoco+").refs == REFER(coco, "refcoco+").refs


def test_annotations_as_candidates_always_hold_the_target(kit, coco):
    """All three accuracies of an oracle are 100, on real boxes that are clipped to the image."""
    dataset = build(kit, coco, "train+val+testA+testB")
    assert accuracies(oracle(dataset), dataset) == {"expressions": 98, "overlap": 100, "exact": 100, "ceiling": 100}


def test_moved_boxes_do_not_always_reach_the_target(kit, coco):
    dataset = build(kit, coco, "train", "proposal")
    assert len(dataset) == 65
    scores = accuracies(oracle(dataset), dataset)
    assert 50 < scores["ceiling"] < 100 and scores["overlap"] < scores["ceiling"]


def test_photos_and_words(kit, coco):
    """The vocabulary has all words. The pixels have the size that the metadata states."""
    dataset = build(kit, coco, "train", "proposal+gt", "SCALES=[240,400]", split="train")
    groups = list(dataset.group_ids)
    picked = [groups.index(0), groups.index(1)]
    batch = collate([dataset.sample(i, random.Random(i)) for i in picked])
    assert batch.image.shape[:2] == (2, 3) and batch.image.std() > 20
    assert (batch.targets["label"].masked_fill(~batch.box_mask, 0).sum(1) >= 1).all()
    for expression in dataset.expressions:
        ids = dataset.tokenizer.ids(dataset.tokenizer.tokenize(" ".join(expression.tokens)))
        assert ids and dataset.tokenizer.unk_id not in ids


def test_features_of_our_own_extraction(kit, coco):
    """Boxes of annotations as stored for VQA, x + w - 1 and clipped, are those of box mode gt, in the same order."""
    store = linked_coco(kit) / "vgbua_res101_precomputed/trainval2014_resnet101_faster_rcnn_genome"
    keys = ("NETWORK.IMAGE_FEAT_PRECOMPUTED=true", f"DATASET.REGION_PATH={store}")
    regions = JsonRegions(store)
    for sets in COUNTS:
        seen, stored = build(kit, coco, sets), build(kit, coco, sets, "gt", *keys)
        for index in range(len(stored)):
            got = stored.sample(index, random.Random(0))
            assert got.image is None and len(got.features) == len(got.boxes)
            assert torch.equal(got.features[1:], regions.regions(stored.expressions[index].image_id).features)
            assert torch.equal(stored.choices(index).boxes, seen.choices(index).boxes)

"""Real VCR questions and metadata of the data kit; its images are drawn from the metadata's polygons."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from common.config import load_config
from common.data.collate import collate
from common.detect.sources import build_source
from common.regions.json_store import JsonRegions
from data.regions.extract import extract
from tests.paths import ROOT
from vcr.dataset import VCRDataset, build_dataset
from vcr.text import MAX_TOKENS, QA2R

COUNTS = {"train": 44, "val": 23, "test": 23}


def build(kit: Path, *overrides: str, split: str = "train", half: str = "q2a") -> VCRDataset:
    settings = [f"DATASET.DATASET_PATH={kit}/vcr", f"NETWORK.BERT_MODEL_NAME={kit}/vocab/bert-base-uncased"]
    cfg = load_config("vcr", ROOT / f"cfgs/vcr/base_{half}_4x16G_fp32.yaml", [*settings, *overrides])
    return build_dataset(cfg, split)


@pytest.mark.parametrize("half", ["q2a", "qa2r"])
@pytest.mark.parametrize("split", COUNTS)
def test_all_items_of_the_published_configs(kit, split, half):
    """Text, boxes and masks of small images: reading pixels would take most of the time."""
    dataset = build(kit, "SCALES=[32, 64]", "TRAIN.FLIP_PROB=0", split=split, half=half)
    assert len(dataset) == COUNTS[split]
    for i in range(0, len(dataset), 3):
        annotation, sample = dataset.annotations[i], dataset.sample(i, random.Random(0))
        assert len(sample.boxes) == len(annotation.objects) + 1 == len(sample.box_masks) == len(sample.box_classes)
        assert len(sample.text_ids) == (16 if (split, dataset.task) == ("test", QA2R) else 4)
        width, height = sample.im_info[:2].tolist()
        assert sample.boxes[0].tolist() == [0, 0, width - 1, height - 1]
        assert (sample.boxes[:, 2:] <= torch.tensor([width - 1, height - 1])).all()
        # The detector's outlines fill a good part of their boxes.
        assert 0.2 < sample.box_masks[1:].mean() < 0.95
        for ids, tags in zip(sample.text_ids, sample.text_tags, strict=True):
            assert ids[0] == 101 and ids[-1] == 102 and (ids == 102).sum() == 2
            assert tags.max() <= len(annotation.objects)
            assert split == "test" or len(ids) <= MAX_TOKENS + 3
        references = {o + 1 for token in annotation.question if isinstance(token, list) for o in token}
        assert references <= set(sample.text_tags[0].tolist()) or dataset.task == QA2R
        assert not any((ids == dataset.sequences.tokenizer.unk_id).any() for ids in sample.text_ids)


def test_the_leaderboard_s_rows_repeat_the_rationales(kit):
    """Row 4 i + j ends in rationale j. Where nothing is cut, the rows of the right answer are those of validation."""
    test, val = build(kit, split="test", half="qa2r"), build(kit, split="val", half="qa2r")
    tiny = {"test": test.sample(0, random.Random(0)), "val": val.sample(0, random.Random(0))}
    assert tiny["test"].id == tiny["val"].id
    right = val.annotations[0].answer_label
    for j in range(4):
        got, want = tiny["test"].text_ids[4 * right + j], tiny["val"].text_ids[j]
        assert torch.equal(got, want)


def test_an_image_shows_its_detections(kit):
    """The kit paints each object's polygon in one colour: pixels under its mask vary less than the image."""
    dataset = build(kit, "TRAIN.FLIP_PROB=0", "SCALES=[300, 600]")
    sample = dataset.sample(0, random.Random(0))
    assert sample.image.shape == (3, 300, 600)
    x1, y1, x2, y2 = sample.boxes[-1].int().tolist()
    inside = sample.image[:, y1:y2, x1:x2].flatten(1)
    grid = (
        torch.nn.functional.interpolate(sample.box_masks[-1][None, None], size=(y2 - y1, x2 - x1))[0, 0].flatten() > 0
    )
    width, height = sample.im_info[:2].int().tolist()
    assert inside[:, grid].std(dim=1).mean() < 0.8 * sample.image[:, :height, :width].flatten(1).std(dim=1).mean()


def test_precomputed_features_of_the_metadata_s_boxes(kit, tmp_path):
    """The extraction program (without its network) writes a store of the annotated boxes, and samples read it."""
    source = build_source(f"vcr:{kit}/vcr/train.jsonl")
    images = source.entries(f"{kit}/vcr/vcr1images")
    outcome = extract(
        images, source, lambda images, boxes: [torch.nn.functional.pad(b, (0, 2044)) for b in boxes], tmp_path
    )
    assert not outcome.failed and len(JsonRegions(tmp_path).names()) == len(images) > 10
    dataset = build(kit, "NETWORK.IMAGE_FEAT_PRECOMPUTED=true", f"DATASET.REGION_PATH={tmp_path}", "TRAIN.FLIP_PROB=0")
    samples = [dataset.sample(i, random.Random(0)) for i in range(len(dataset))]
    for sample in samples:
        ratios = sample.im_info[[2, 3, 2, 3]]
        torch.testing.assert_close(sample.features[1:, :4] * ratios, sample.boxes[1:], atol=1.5, rtol=0)
    assert collate(samples).features.shape[0] == 44

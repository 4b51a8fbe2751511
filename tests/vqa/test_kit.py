"""Real VQA v2 questions, answers and photos of the data kit, with regions made from COCO's own boxes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from common.config import load_config
from common.data.collate import collate
from common.data.loader import BatchLoader
from tests.golden.kit_coco import linked_coco
from tests.paths import ROOT
from vqa.accuracy import evaluate_answers
from vqa.dataset import VQADataset, build_dataset

YES_NO_QUESTIONS = 25  # of the 92, by the kit's README


@pytest.fixture(scope="module")
def coco(kit: Path) -> Path:
    return linked_coco(kit)


def build(kit: Path, coco: Path, *overrides: str) -> VQADataset:
    cfg = load_config(
        "vqa",
        ROOT / "cfgs/vqa/base_4x16G_fp32.yaml",
        [
            f"DATASET.DATASET_PATH={coco}",
            f"DATASET.ANSWER_VOCAB_FILE={coco}/vqa/answers_vqa.txt",
            f"NETWORK.BERT_MODEL_NAME={kit}/vocab/bert-base-uncased",
            *overrides,
        ],
    )
    return build_dataset(cfg, "train")


def test_all_items_of_the_published_config(kit, coco):
    """train2014+val2014: 92 and 3 questions, the real 3129 answers, nothing unknown to the tokenizer."""
    dataset = build(kit, coco)
    assert len(dataset) == 95 and len(dataset.vocabulary) == 3129
    for batch in BatchLoader(dataset, 32):
        assert batch.features.shape[:2] == batch.boxes.shape[:2] == batch.box_mask.shape
        assert batch.targets["label"].shape == (len(batch), 3129)
        assert not (batch.text_ids == dataset.tokenizer.unk_id).any()
        assert (batch.text_ids[:, 0] == 101).all() and (batch.text_ids == 103).sum(1).tolist() == [1] * len(batch)
        width = batch.im_info[:, None, 0] - 1
        assert (batch.boxes[..., 2] <= width).all() and (batch.boxes[:, 0, 2] > 0.99 * width[:, 0]).all()


def test_the_best_answer_of_each_target_is_an_annotated_one(kit, coco):
    """By the official accuracy, only answers that the vocabulary lacks are lost."""
    dataset = build(kit, coco, "DATASET.TRAIN_IMAGE_SET=train2014", "TRAIN.FLIP_PROB=0.0")
    assert len(dataset) == 92
    labels = [dataset.sample(i, random.Random(0)).targets["label"] for i in range(92)]
    answers = {
        q.question_id: dataset.vocabulary[int(t.argmax())] for q, t in zip(dataset.questions, labels, strict=True)
    }
    annotations = json.loads((coco / "vqa/v2_mscoco_train2014_annotations.json").read_text())["annotations"]
    scores = evaluate_answers(answers, annotations)
    assert scores["answer_type"]["yes/no"]["count"] == YES_NO_QUESTIONS
    assert scores["answer_type"]["yes/no"]["accuracy"] == 100
    assert scores["overall"]["accuracy"] > 90
    assert sum(bool(label.any()) for label in labels) >= 88


def test_photos(kit, coco):
    """Images of both orientations in one batch. The metadata agrees with the files."""
    dataset = build(kit, coco, "NETWORK.IMAGE_FEAT_PRECOMPUTED=false", "TRAIN.FLIP_PROB=0.0")
    groups = list(dataset.group_ids)
    picked = [groups.index(0), groups.index(1), len(dataset) - 1]
    samples = [dataset.sample(i, random.Random(0)) for i in picked]
    for i, sample in zip(picked, samples, strict=True):
        width, height = sample.im_info[:2].int().tolist()
        assert sample.image.shape == (3, height, width) and (width >= height) == (groups[i] == 0)
        original = torch.tensor(dataset.image_size(dataset.questions[i]))
        torch.testing.assert_close(original * sample.im_info[2:], sample.im_info[:2], atol=1e-3, rtol=0)
        assert sample.image.mean(dim=(1, 2)).abs().max() < 100 and sample.image.std() > 20
    assert collate(samples).image.shape == (3, 3, *(max(s.image.shape[k] for s in samples) for k in (1, 2)))

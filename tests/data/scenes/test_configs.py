"""The configs for the made-up world fit its files."""

from pathlib import Path

import pytest

from common.config import load_config
from data.scenes.generate import FOLDERS, vocabulary
from data.scenes.questions import ANSWERS
from tests.paths import ROOT

CONFIGS = [
    ("vqa", "vqa/scenes.yaml"),
    ("vcr", "vcr/scenes_q2a.yaml"),
    ("vcr", "vcr/scenes_qa2r.yaml"),
    ("refcoco", "refcoco/scenes.yaml"),
]


@pytest.mark.parametrize(("task", "file"), CONFIGS)
def test_sizes_and_paths(task, file):
    cfg = load_config(task, ROOT / "cfgs" / file)
    assert cfg.NETWORK.VLBERT.vocab_size == len(vocabulary())
    assert cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED
    world = Path(cfg.DATASET.DATASET_PATH)
    assert Path(cfg.NETWORK.BERT_MODEL_NAME).parent == world
    if task == "vqa":
        assert len(ANSWERS) + 1 == cfg.DATASET.ANSWER_VOCAB_SIZE
        assert Path(cfg.DATASET.ANSWER_VOCAB_FILE).parent == world / "vqa"
    else:
        assert Path(cfg.DATASET.REGION_PATH).relative_to(world).parts[0] in FOLDERS


def test_vcr_does_not_mirror_images():
    """The words of VCR stay as they are when an image is mirrored, and these say left and right."""
    for _, file in CONFIGS[1:3]:
        assert load_config("vcr", ROOT / "cfgs" / file).TRAIN.FLIP_PROB == 0


def test_both_halves_of_vcr_differ_in_task_and_name_alone():
    first, second = (load_config("vcr", ROOT / "cfgs" / file).to_dict() for _, file in CONFIGS[1:3])
    assert (first["DATASET"].pop("TASK"), second["DATASET"].pop("TASK")) == ("Q2A", "QA2R")
    assert first.pop("MODEL_PREFIX") != second.pop("MODEL_PREFIX")
    assert first == second

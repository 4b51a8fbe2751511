"""The files that a config of pretraining names."""

from __future__ import annotations

import json

import pytest

from pretrain.needs import needs
from tests.made_up import config


@pytest.fixture
def names(tmp_path):
    """The first names of the needs in the folder of the captions."""

    def names(**changes: object) -> set[str]:
        cfg = config("pretrain", {"DATASET.0.DATASET_PATH": str(tmp_path), **changes})
        return {need.names[0] for need in needs(cfg) if need.folder == tmp_path}

    return names


def test_without_records_the_usual_folders(names):
    assert names() == {"train_frcnn.json", "val_frcnn.json", "train_frcnn", "val_frcnn"}


def test_the_first_record_names_the_folders(names, tmp_path):
    record = {"image": "pixels/0.jpg", "frcnn": "../store.zip@/0.json", "caption": "a dog"}
    (tmp_path / "train_frcnn.json").write_text(json.dumps(record))
    pixels = {"NETWORK.IMAGE_FEAT_PRECOMPUTED": False}
    assert names(**pixels) >= {"pixels", "val_image", "train_frcnn.json"} and "train_image" not in names(**pixels)


def test_text_files_of_all_splits(tmp_path):
    cfg = config("pretrain", {"DATASET.1.TRAIN_ANNOTATION_FILE": f"{tmp_path}/a.txt+{tmp_path}/b.txt"})
    assert {"a.txt", "b.txt"} <= {need.names[0] for need in needs(cfg)}

"""Needs: what counts as found, and the needs of weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.needs import Need, file_need, image_folder_need, names_of, region_store_need, weight_needs
from tests.made_up import config


def test_one_of_several_names_is_enough(tmp_path):
    need = region_store_need(tmp_path / "a/regions", tmp_path)
    assert need == Need(tmp_path, ("a/regions", "a/regions.packed", "a/regions.zip"), region_store=True)
    assert not need.exists() and need.path == tmp_path / "a/regions"
    (tmp_path / "a").mkdir()
    (tmp_path / "a/regions.zip").touch()
    assert need.exists()
    assert str(Need(Path("x"), ("a", "b"))) == "x/a or x/b"


@pytest.mark.parametrize(
    ("path", "folder", "name"),
    [("data/a/b.txt", "data", "a/b.txt"), ("else/b.txt", "else", "b.txt"), ("b.txt", ".", "b.txt")],
)
def test_a_file_is_reported_with_the_root_that_holds_it(path, folder, name):
    assert file_need(path, Path("data")) == Need(Path(folder), (name,))


def test_images_lie_in_a_folder_or_in_an_archive():
    assert image_folder_need(Path("data"), "val2014") == Need(Path("data"), ("val2014", "val2014.zip"))


def test_names_of_all_splits_each_once():
    changes = {
        "DATASET.TRAIN_IMAGE_SET": "train2014+val2014",
        "DATASET.VAL_IMAGE_SET": "val2014",
        "DATASET.TEST_IMAGE_SET": "",
    }
    assert names_of(config("vqa", changes).DATASET, "IMAGE_SET") == ["train2014", "val2014"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"NETWORK.BERT_RANDOM_INIT": True}, set()),
        ({"NETWORK.BERT_PRETRAINED": "w/bert", "NETWORK.BERT_PRETRAINED_EPOCH": 3}, {"bert-0003.model"}),
        ({"NETWORK.PARTIAL_PRETRAIN": "w/start.model"}, {"start.model"}),
        ({}, {"bert/pytorch_model.bin"}),
    ],
)
def test_weights_that_a_run_starts_from(changes, names):
    changes = {"NETWORK.PARTIAL_PRETRAIN": "", "NETWORK.BERT_MODEL_NAME": "w/bert"} | changes
    needs = weight_needs(config("vqa", changes))
    assert {need.names[0] for need in needs} == names | {"bert/vocab.txt"} and {n.folder for n in needs} == {Path("w")}


def test_a_vocabulary_file_instead_of_its_folder():
    changes = {
        "NETWORK.PARTIAL_PRETRAIN": "",
        "NETWORK.BERT_MODEL_NAME": "w/words.txt",
        "NETWORK.BERT_RANDOM_INIT": True,
    }
    assert [str(need) for need in weight_needs(config("vqa", changes))] == ["w/words.txt"]

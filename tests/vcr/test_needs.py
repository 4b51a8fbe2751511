"""The files that a config of VCR names."""

from __future__ import annotations

from pathlib import Path

from common.needs import Need
from tests.made_up import config
from vcr.needs import needs


def test_annotations_and_folders_of_images_and_metadata():
    cfg = config("vcr", {"DATASET.DATASET_PATH": "data", "DATASET.TRAIN_IMAGE_SET": "images"})
    found = needs(cfg)
    assert Need(Path("data"), (cfg.DATASET.TRAIN_ANNOTATION_FILE,)) in found
    assert Need(Path("data"), ("images", "images.zip")) in found
    assert not any(need.region_store for need in found)


def test_precomputed_features_need_their_store_beside_the_metadata():
    features = {"NETWORK.IMAGE_FEAT_PRECOMPUTED": True, "DATASET.REGION_PATH": "data/regions"}
    found = needs(config("vcr", {"DATASET.DATASET_PATH": "data", **features}))
    assert Need(Path("data"), ("regions", "regions.packed", "regions.zip"), region_store=True) in found
    assert any(need.names[0].startswith("vcr1images") for need in found)

"""Values that follow from config keys."""

from __future__ import annotations

import pytest

from common.config import Config, default_config, replace
from common.config.derived import backbone_path, usable_positions


@pytest.fixture
def cfg() -> Config:
    return default_config("vqa")


def test_positions_up_to_the_padding_index_are_not_usable(cfg):
    keys = {"NETWORK.VLBERT.max_position_embeddings": 514, "NETWORK.VLBERT.position_padding_idx": 1}
    assert usable_positions(replace(cfg, keys)) == 512
    assert usable_positions(replace(cfg, keys | {"NETWORK.VLBERT.position_padding_idx": -1})) == 514


def test_the_backbone_is_named_by_prefix_and_epoch(cfg):
    assert backbone_path(replace(cfg, {"NETWORK.IMAGE_PRETRAINED": "a/r", "NETWORK.IMAGE_PRETRAINED_EPOCH": 12})) == (
        "a/r-0012.model"
    )
    assert backbone_path(replace(cfg, {"NETWORK.IMAGE_PRETRAINED": ""})) is None

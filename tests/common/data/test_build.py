"""The transform of a config."""

from __future__ import annotations

from common.config import default_config, replace
from common.data.build import build_transform


def test_only_a_split_flips():
    cfg = replace(default_config("vqa"), {"TRAIN.FLIP_PROB": 0.5, "VAL.FLIP_PROB": 0.25, "SCALES": [60, 100]})
    assert [build_transform(cfg, split).flip_prob for split in ("train", "val", None)] == [0.5, 0.25, 0.0]
    assert tuple(build_transform(cfg).scales) == (60, 100)
    assert [build_transform(cfg, fixed_padding=f).fixed_padding for f in (False, True)] == [False, True]

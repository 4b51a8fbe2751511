"""Parts of the data path from a config."""

from __future__ import annotations

from common.config import Config
from common.data.transforms import Transform


def build_transform(cfg: Config, split: str | None = None, fixed_padding: bool = False) -> Transform:
    """The transform of images and boxes. split: "train", "val" or "test", whose FLIP_PROB counts; None never flips."""
    network = cfg.NETWORK
    flip_prob = cfg[split.upper()].FLIP_PROB if split else 0.0
    return Transform(cfg.SCALES, network.PIXEL_MEANS, network.PIXEL_STDS, flip_prob, fixed_padding)

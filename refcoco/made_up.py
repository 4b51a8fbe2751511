"""Made-up samples of RefCOCO+."""

from __future__ import annotations

from common.config import Config
from common.data.sample import Sample
from common.data.synthetic import Draw, MadeUp, Vocabulary, fill_text

POSITIVE = 0.2  # fraction of candidate boxes that cover a referent


def fill(sample: Sample, cfg: Config, words: int, vocabulary: Vocabulary, draw: Draw) -> None:
    """Adds `[CLS] expression [SEP]`, and a label of each box: whether it covers the referent. At least one does."""
    fill_text(sample, cfg, words, vocabulary, draw)
    label = (draw.uniform(len(sample.boxes)) < POSITIVE).float()
    label[draw.number(1, len(label) - 1)] = 1.0
    sample.targets, sample.target_pads = {"label": label}, {"label": -1.0}


MADE_UP = MadeUp(fill, words=lambda cfg: 10, boxes=11)

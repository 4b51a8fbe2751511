"""Made-up samples of VCR."""

from __future__ import annotations

import torch
from torch import Tensor

from common.config import Config
from common.data.sample import Sample
from common.data.synthetic import Draw, MadeUp, Vocabulary
from common.data.text import join_segments
from vcr.annotations import CATEGORIES, NUM_CHOICES

LINKED = 0.2  # fraction of word pieces that name a detection


def fill(sample: Sample, cfg: Config, words: int, vocabulary: Vocabulary, draw: Draw) -> None:
    """Adds `[CLS] query [SEP] choice [SEP]` for each choice, categories, instance masks and the right choice.

    Some words name a detection.
    """
    count = len(sample.boxes)
    longest = words - words // 2
    lengths = [longest, *(draw.fewer(longest) for _ in range(NUM_CHOICES - 1))]
    query, query_tags = draw.words(words // 2, vocabulary), _tags(words // 2, count, draw)
    texts = [join_segments([query, draw.words(n, vocabulary)], vocabulary.cls, vocabulary.sep) for n in lengths]
    sample.text_ids, sample.segment_ids = ([torch.tensor(text[part]) for text in texts] for part in (0, 1))
    sample.text_tags = [torch.tensor(join_segments([query_tags, _tags(n, count, draw)], 0, 0)[0]) for n in lengths]

    sample.box_classes = torch.randint(1, len(CATEGORIES), (count,), generator=draw.rng)
    sample.box_masks = _ellipses(count, cfg.DATASET.MASK_SIZE, draw)
    if cfg.DATASET.ADD_IMAGE_AS_A_BOX:
        sample.box_classes[0], sample.box_masks[0] = 0, 1.0
    sample.targets = {"label": torch.tensor(draw.number(0, NUM_CHOICES - 1))}


def _tags(words: int, boxes: int, draw: Draw) -> list[int]:
    """Returns for each word the row of the detection that it names, 0 for the most, which name none."""
    rows = torch.randint(1, boxes, (words,), generator=draw.rng)
    return torch.where(draw.uniform(words) < LINKED, rows, 0).tolist()


def _ellipses(count: int, side: int, draw: Draw) -> Tensor:
    """Returns masks [count, side, side] of 0 and 1, each with an ellipse around its middle."""
    grid = torch.linspace(-1, 1, side)
    radii = 0.5 + 0.5 * draw.uniform(count, 2, 1)
    y, x = (grid / radii).unbind(1)  # (count, side) each
    return (x[:, None] ** 2 + y[:, :, None] ** 2 <= 1).float()


MADE_UP = MadeUp(fill, words=lambda cfg: 60 if cfg.DATASET.TASK == "QA2R" else 32, boxes=16, canvas=True)

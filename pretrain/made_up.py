"""Made-up samples of pretraining: captions, and batches of plain text beside them."""

from __future__ import annotations

import torch
from torch import Tensor

from common.config import Config, dataset_sections
from common.data.collate import collate
from common.data.sample import Batch, Sample
from common.data.synthetic import Draw, MadeUp, Vocabulary, fill_text

BOXES = 50  # usual number of regions
HIDDEN = 0.15  # fraction of words and of regions that are masked


def fill(sample: Sample, cfg: Config, words: int, vocabulary: Vocabulary, draw: Draw) -> None:
    """Adds `[CLS] caption [SEP]` and masks some words and some regions, at least one of each."""
    fill_text(sample, cfg, words, vocabulary, draw)
    sample.segment_ids = torch.zeros_like(torch.as_tensor(sample.text_ids))
    wanted = draw.uniform(len(sample.boxes)) < HIDDEN
    wanted[0], wanted[-1] = False, True  # never the whole image
    scores = (3 * draw.uniform(int(wanted.sum()), cfg.NETWORK.VLBERT.visual_region_classes)).softmax(-1)
    sample.targets = {
        "relationship_label": torch.tensor(draw.number(0, 1)),
        "mlm_labels": _hide_words(sample, vocabulary, draw),
        "mvrc_ops": wanted.long(),
        "mvrc_mask": wanted,
        "mvrc_labels": scores,
    }
    sample.target_pads = {"mlm_labels": -1}


def _hide_words(sample: Sample, vocabulary: Vocabulary, draw: Draw) -> Tensor:
    """Puts [MASK] in place of some words. Returns their ids at their places, -1 elsewhere."""
    ids = torch.as_tensor(sample.text_ids)
    hidden = draw.uniform(len(ids)) < HIDDEN
    hidden[len(ids) // 2] = True
    hidden &= (ids != vocabulary.cls) & (ids != vocabulary.sep)
    sample.text_ids = ids.masked_fill(hidden, vocabulary.mask)
    return ids.masked_fill(~hidden, -1)


def plain_text(cfg: Config, samples: int, vocabulary: Vocabulary, draw: Draw, targets: bool) -> tuple[Batch, ...]:
    """Returns a batch of words alone, SEQ_LEN long, for each further entry of DATASET."""
    batches = []
    for entry in dataset_sections(cfg)[1:]:
        lines = []
        for number in range(samples):
            ids = torch.tensor(draw.words(entry.SEQ_LEN, vocabulary))
            line = Sample(number, torch.zeros(4), torch.zeros(0, 4), ids, torch.zeros_like(ids))
            labels = _hide_words(line, vocabulary, draw)
            line.targets, line.target_pads = {"mlm_labels": labels} if targets else {}, {"mlm_labels": -1}
            lines.append(line)
        batches.append(collate(lines))
    return tuple(batches)


def caption_words(cfg: Config) -> int:
    """Returns how many words fit beside the usual number of boxes, without [CLS] and [SEP]."""
    return max(2, dataset_sections(cfg)[0].SEQ_LEN - BOXES - 2)


MADE_UP = MadeUp(fill, caption_words, BOXES, auxiliary=plain_text)

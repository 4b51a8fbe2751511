"""Made-up samples of VQA."""

from __future__ import annotations

import torch

from common.config import Config
from common.data.sample import Sample
from common.data.synthetic import Draw, MadeUp, Vocabulary, set_text


def fill(sample: Sample, cfg: Config, words: int, vocabulary: Vocabulary, draw: Draw) -> None:
    """Adds `[CLS] question [SEP] [MASK] [SEP]`, and soft scores of up to three answers."""
    set_text(sample, [draw.words(words, vocabulary), [vocabulary.mask]], vocabulary)
    label = torch.zeros(cfg.DATASET.ANSWER_VOCAB_SIZE)
    answers = torch.randperm(len(label), generator=draw.rng)[:3]
    label[answers] = torch.tensor([1.0, 0.6, 0.3])[: len(answers)]
    sample.targets = {"label": label}


MADE_UP = MadeUp(fill, boxes=100)

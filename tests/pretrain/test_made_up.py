"""Made-up samples of pretraining."""

from __future__ import annotations

import torch

from common.config import load_config
from tests.made_up import ROOT, TINY, config, made_up_batch

MASK = 103


def test_hidden_words_and_regions_have_targets():
    batch = made_up_batch("pretrain", config("pretrain"), samples=4)
    for part in (batch, *batch.auxiliary):
        hidden = part.targets["mlm_labels"] != -1
        assert torch.equal(hidden, part.text_ids == MASK) and hidden.any(1).all()
        assert 0.05 < hidden.sum() / part.text_mask.sum() < 0.35
    wanted, labels = batch.targets["mvrc_mask"], batch.targets["mvrc_labels"]
    assert not wanted[:, 0].any() and wanted.any(1).all() and labels.shape[1:] == (wanted.sum(1).max(), 1601)
    assert [int((row.sum(-1) > 0.9).sum()) for row in labels] == wanted.sum(1).tolist()


def test_text_and_regions_fill_the_length_of_the_config():
    batch = made_up_batch("pretrain", config("pretrain"), samples=3)
    assert batch.text_ids.shape[1] + batch.boxes.shape[1] == 64
    (text,) = batch.auxiliary
    assert text.text_ids.shape == (3, 64) and text.text_mask.all() and text.boxes.shape == (3, 0, 4)


def test_a_single_data_set_has_no_text_beside_it():
    path = ROOT / "cfgs/pretrain/base_prec_withouttextonly_4x16G_fp32.yaml"
    assert made_up_batch("pretrain", load_config("pretrain", path, TINY)).auxiliary == ()

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pretrain.losses import EPS, masked_region_loss, masked_word_loss, mean_of


def test_words_are_averaged_over_all():
    logits, labels = torch.randn(5, 9), torch.tensor([0, 3, 8, 1, 1])
    torch.testing.assert_close(masked_word_loss(logits, labels), F.cross_entropy(logits, labels))


def test_a_sample_is_averaged_first():
    """Samples 0 and 3 of a batch have 1 and 3 targets (original 5.21)."""
    losses, counted = torch.tensor([4.0, 1.0, 2.0, 3.0]), torch.ones(4)
    got = mean_of(losses, counted, torch.tensor([0, 3, 3, 3]))
    assert got.item() == pytest.approx((4 / (1 + EPS) + 6 / (3 + EPS)) / (2 + EPS))
    # What does not count makes no difference, and a sample of such alone is none.
    more = mean_of(
        torch.tensor([4.0, 9.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 0, 1, 1, 1]), torch.tensor([0, 1, 3, 3, 3])
    )
    assert more.item() == got.item()


def test_regions_whose_scores_are_no_distribution_do_not_count():
    logits = torch.randn(4, 6)
    labels = torch.rand(4, 6).softmax(-1) * torch.tensor([1.0, 0.0, 0.85, 1.05])[:, None]
    rows = [0, 3]
    expected = -(labels[rows] * logits[rows].log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(masked_region_loss(logits, labels), expected)


@pytest.mark.parametrize("by_sample", [False, True])
def test_no_target_is_a_zero_with_zero_gradients(by_sample):
    """Not NaN, and no parameter without a gradient (original 5.22)."""
    sample = torch.zeros(0, dtype=torch.int64) if by_sample else None
    for loss, labels in (
        (masked_word_loss, torch.zeros(0, dtype=torch.int64)),
        (masked_region_loss, torch.zeros(0, 7)),
    ):
        logits = torch.randn(0, 7, requires_grad=True)
        value = loss(logits, labels, sample)
        value.backward()
        assert value.item() == 0 and logits.grad is not None
    logits = torch.randn(2, 7, requires_grad=True)
    value = masked_region_loss(logits, torch.zeros(2, 7), torch.tensor([0, 1]) if by_sample else None)
    value.backward()
    assert value.item() == 0 and not logits.grad.any()


def test_in_bf16_losses_are_computed_in_fp32():
    logits, labels = torch.randn(50, 300).bfloat16(), torch.randint(300, (50,))
    assert masked_word_loss(logits, labels).dtype == torch.float32
    torch.testing.assert_close(masked_word_loss(logits, labels), F.cross_entropy(logits.float(), labels))

"""Original 4.18 and 9.16."""

import math

import pytest
import torch

from common.nn.losses import binary_cross_entropy_sum, soft_cross_entropy, soft_label_mask

LOGITS = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [1.0, 2.0]])
TARGET = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.0, 0.0]])  # the last row is no target
ROWS = [math.log(2), -(0.25 * math.log(0.75) + 0.75 * math.log(0.25)), 0.0]


def test_soft_cross_entropy_by_hand():
    assert soft_cross_entropy(LOGITS, TARGET, "none").tolist() == pytest.approx(ROWS)
    assert soft_cross_entropy(LOGITS, TARGET, "sum").item() == pytest.approx(sum(ROWS))
    assert soft_cross_entropy(LOGITS, TARGET).item() == pytest.approx(sum(ROWS) / 2)  # over the two valid rows
    with pytest.raises(ValueError, match="'max'"):
        soft_cross_entropy(LOGITS, TARGET, "max")


def test_rows_that_sum_to_about_one_are_targets():
    sums = torch.tensor([0.0, 0.89, 0.91, 1.0, 1.09, 1.11])
    assert soft_label_mask(sums[:, None]).tolist() == [False, False, True, True, True, False]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_without_a_target_the_loss_is_zero_and_has_a_gradient(reduction):
    """Otherwise a rank without masked regions would leave the others waiting in backward."""
    logits = LOGITS.clone().requires_grad_()
    loss = soft_cross_entropy(logits, torch.zeros(3, 2), reduction)
    assert loss.item() == 0 and loss.requires_grad
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros(3, 2))


def test_rows_without_target_have_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    soft_cross_entropy(logits, TARGET).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.0, 0.0], [0.25, -0.25], [0.0, 0.0]]))


def test_bce_sums_over_answers_and_averages_over_questions():
    logits = torch.tensor([[0.0, 0.0, math.log(3.0)], [0.0, 0.0, 0.0]])
    target = torch.tensor([[1.0, 0.3, 1.0], [0.0, 0.0, 0.0]])
    # sigmoid 0.5 costs log 2 whatever the target; sigmoid 0.75 with target 1 costs -log 0.75
    want = (2 * math.log(2) - math.log(0.75) + 3 * math.log(2)) / 2
    assert binary_cross_entropy_sum(logits, target).item() == pytest.approx(want)


def test_losses_compute_in_float32():
    """Sums over thousands of classes would be lost in bf16."""
    assert soft_cross_entropy(LOGITS.bfloat16(), TARGET).dtype == torch.float32
    assert binary_cross_entropy_sum(LOGITS.bfloat16(), TARGET).dtype == torch.float32

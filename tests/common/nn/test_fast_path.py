"""NETWORK.FAST_PATH changes nothing but the time: every task with it and without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.nn.bert import Encoder
from common.nn.cpu.bert import FastEncoder
from tests.common.nn.models import FILES, tiny_batch, tiny_model

TASKS = list(FILES)


def real_predictions(task: str, fast: bool, low: bool = False) -> dict[str, Tensor]:
    """Predictions of a batch without targets at its real words and regions; padding has no meaning."""
    model, batch = tiny_model(task, fast).eval(), tiny_batch(task, targets=False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        found = model(batch).predictions
    masks = {"mlm_logits_wvc": batch.text_mask, "mvrc_logits": batch.box_mask}
    for name in masks.keys() & found.keys():
        found[name] = found[name][:, : masks[name].shape[1]][masks[name]]
    return {name: value.float() for name, value in found.items() if name != "pred_boxes" or not low}


def test_the_switch_chooses_the_classes():
    fast, plain = (tiny_model("vqa", on).vlbert.encoder for on in (True, False))
    assert type(fast) is FastEncoder and type(plain) is Encoder


@pytest.mark.parametrize("task", TASKS)
def test_the_same_state_dict_and_initial_weights(task):
    fast, plain = (tiny_model(task, on) for on in (True, False))
    assert [n for n, _ in fast.named_parameters()] == [n for n, _ in plain.named_parameters()]
    for (name, value), (other, want) in zip(fast.state_dict().items(), plain.state_dict().items(), strict=True):
        assert name == other and torch.equal(value, want)


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_in_float32(task):
    fast, plain = (real_predictions(task, on) for on in (True, False))
    assert fast.keys() == plain.keys()
    for name, want in plain.items():
        torch.testing.assert_close(fast[name], want, atol=2e-5, rtol=1e-4, msg=lambda text, n=name: f"{n} {text}")


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_in_bf16(task):
    """Each path within 2 % of float32, by the norm of the difference. pred_boxes may change by rounding."""
    exact = real_predictions(task, fast=False)
    for fast in (True, False):
        for name, got in real_predictions(task, fast, low=True).items():
            assert (got - exact[name]).norm() <= 0.02 * exact[name].norm(), (name, fast)


@pytest.mark.parametrize("task", TASKS)
def test_losses_and_gradients(task):
    batch, found = tiny_batch(task), []
    for fast in (True, False):
        model = tiny_model(task, fast).train()
        output = model(batch)
        output.loss.backward()
        found.append((output.losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (losses, gradients), (want_losses, want_gradients) = found
    assert losses.keys() == want_losses.keys() and gradients.keys() == want_gradients.keys()
    for name, want in want_losses.items():
        torch.testing.assert_close(losses[name], want, atol=1e-5, rtol=1e-5, msg=lambda text, n=name: f"{n} {text}")
    for name, want in want_gradients.items():
        # Rounding switches a ReLU of the CNN on or off here and there, which counts fully.
        limit = 1e-2 if ".backbone." in name or ".roi_head_feature_extractor." in name else 1e-3
        assert (gradients[name] - want).norm() <= limit * want.norm() + 1e-6, name

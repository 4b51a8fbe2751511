import copy
import math

import pytest
import torch
from torch import nn

from common.train.adamw import AdamW
from common.train.optim import measure_clipping
from tests.common.train.sections import parameter, with_grad


@pytest.mark.parametrize("fused", [False, True])
class TestAdamW:
    def test_first_step_by_hand(self, fused):
        p = with_grad(parameter(1.0), 0.5)
        AdamW([p], lr=0.1, eps=0.01, weight_decay=0.2, fused=fused).step()
        m, v = 0.1 * 0.5, 0.001 * 0.25
        step_size = 0.1 * math.sqrt(1 - 0.999) / (1 - 0.9)
        updated = 1.0 - step_size * m / (math.sqrt(v) + 0.01)  # eps beside the uncorrected root
        assert p.item() == pytest.approx(updated - 0.1 * 0.2 * updated, rel=1e-12)  # decay of the updated value

    def test_parameters_with_different_step_counts(self, fused):
        """A parameter without a gradient stays, and its correction counts its own steps."""
        together, alone = [parameter(1.0), parameter(2.0)], [parameter(1.0), parameter(2.0)]
        joint = AdamW(together, lr=0.1, fused=fused)
        apart = [AdamW([p], lr=0.1, fused=fused) for p in alone]
        for k in range(3):
            for i, optimizer in enumerate(apart):
                absent = (i, k) == (0, 1)
                for p in (together[i], alone[i]):
                    p.grad = None if absent else torch.full((1,), 0.3 * (k + 1), dtype=p.dtype)
                if not absent:
                    optimizer.step()
            joint.step()
        assert [joint.state[p]["step"] for p in together] == [2, 3]
        torch.testing.assert_close(together, alone, rtol=0, atol=0)

    def test_state_dict_goes_on_and_has_the_original_keys(self, fused):
        p = with_grad(parameter(1.0, 2.0), 0.1, -0.2)
        optimizer = AdamW([p], lr=0.1, weight_decay=0.1, fused=fused)
        optimizer.step()
        state = copy.deepcopy(optimizer.state_dict())  # as from a file; the dict itself shares the moments
        assert set(state["param_groups"][0]) == {"lr", "betas", "eps", "weight_decay", "correct_bias", "params"}
        assert state["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert type(state["state"][0]["step"]) is int

        q = nn.Parameter(p.detach().clone())
        resumed = AdamW([q], lr=7.0, fused=fused)
        resumed.load_state_dict(state)
        q.grad = p.grad.clone()
        optimizer.step()
        resumed.step()
        torch.testing.assert_close(q, p, rtol=0, atol=0)
        assert type(resumed.state[q]["step"]) is int

    def test_no_bias_correction(self, fused):
        p = with_grad(parameter(1.0), 2.0)
        AdamW([p], lr=0.1, eps=0.0, correct_bias=False, fused=fused).step()
        assert p.item() == pytest.approx(1 - 0.1 * 0.2 / math.sqrt(0.004), rel=1e-12)

    def test_sparse_gradient_raises(self, fused):
        table = nn.Embedding(3, 2, sparse=True)
        table(torch.tensor([1])).sum().backward()
        with pytest.raises(RuntimeError, match="sparse"):
            AdamW(table.parameters(), fused=fused).step()


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="lr=-1"):
        AdamW([parameter(1.0)], lr=-1)


@pytest.mark.parametrize("decay", [2.0**-24, 2.0**-26, 1e-9])
def test_a_decay_too_small_for_float32_is_left_out_and_others_are_not(decay, monkeypatch):
    """AdamW skips the pass of a decay that changes no float32; the largest one it keeps changes some."""
    values = torch.rand(200_000) * 4 - 2
    changed = bool((values.add(values, alpha=-decay) != values).any())
    assert changed == (decay > 2.0**-25)
    p = nn.Parameter(values.clone())
    p.grad = torch.zeros_like(p)
    passes = []
    decays = torch._foreach_add_
    monkeypatch.setattr(torch, "_foreach_add_", lambda *a, **k: passes.append(1) or decays(*a, **k))
    AdamW([p], lr=decay, weight_decay=1.0).step()
    assert torch.equal(p.detach(), values.add(values, alpha=-decay)) and len(passes) == changed


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_counts_a_version_of_the_weights(fused):
    """Copies of weights in another number format are made again by their version."""
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    before = p._version
    AdamW([p], lr=0.1, fused=fused).step()
    assert p._version > before


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("limit", [0.5, 100.0, math.inf])
def test_clipping_with_the_step_is_clipping_before_it(fused, limit):
    """Weights and gradients after the step; `grad_scale` holds for one step."""
    torch.manual_seed(0)
    grads = [torch.randn(7, 5), torch.randn(11)]
    found = []
    for together in (False, True):
        params = [nn.Parameter(torch.ones(7, 5)), nn.Parameter(torch.ones(11))]
        optimizer = AdamW(params, lr=0.1, fused=fused)
        for _ in range(2):
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad.clone()
            if together:
                optimizer.step(grad_scale=measure_clipping(params, limit).divisor)
            else:
                nn.utils.clip_grad_norm_(params, limit)
                optimizer.step()
        found.append([*params, *(p.grad for p in params)])
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad.clone()
        optimizer.step()  # without clipping
        assert all(torch.equal(p.grad, grad) for p, grad in zip(params, grads, strict=True))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("correct_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_and_the_formula_give_the_same_weights(dtype, correct_bias):
    """Twenty steps of two groups, with a parameter that has no gradient in some of them."""
    torch.manual_seed(0)
    start = [torch.randn(40, 30, dtype=dtype), torch.randn(30, dtype=dtype), torch.randn(5, dtype=dtype)]
    runs = []
    for fused in (False, True):
        params = [nn.Parameter(p.clone()) for p in start]
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.02}]
        options = {"lr": 0.01, "weight_decay": 0.1, "correct_bias": correct_bias}
        runs.append((params, AdamW(groups, fused=fused, **options)))
    for k in range(20):
        grads = [torch.randn_like(p) * 10 ** (k % 3 - 1) for p in start]
        scale = torch.tensor(1.7) if k % 2 else None
        for params, optimizer in runs:
            for i, (p, grad) in enumerate(zip(params, grads, strict=True)):
                p.grad = None if (i, k % 4) == (1, 2) else grad.clone()
            optimizer.step(grad_scale=scale)
    (plain, plain_optimizer), (fused, fused_optimizer) = runs
    tight = {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 2e-6, "atol": 1e-6}
    for p, q in zip(plain, fused, strict=True):
        torch.testing.assert_close(p, q, **tight)
        for name, value in plain_optimizer.state[p].items():
            torch.testing.assert_close(value, fused_optimizer.state[q][name], **tight)


def test_an_update_with_found_inf_changes_nothing():
    """The host does not read found_inf, so the device must leave weights and moments alone, decay included."""
    torch.manual_seed(0)
    start, grads = [torch.randn(5), torch.randn(3)], [torch.full((5,), math.nan), torch.randn(3)]
    runs = []
    for flags in ([1.0], [0.0], [None]):
        params = [nn.Parameter(p.clone()) for p in start]
        optimizer = AdamW(params, lr=0.1, weight_decay=0.5)
        for flag in flags:
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad.clone() if flag == 1.0 else torch.ones_like(p)
            optimizer.step(grad_scale=torch.tensor(2.0), found_inf=None if flag is None else torch.tensor(flag))
        runs.append((params, optimizer))
    (left, optimizer), (done, _), (plain, _) = runs
    for p, q in zip(left, start, strict=True):
        assert torch.equal(p, q)
        assert not optimizer.state[p]["exp_avg"].any() and not optimizer.state[p]["exp_avg_sq"].any()
    torch.testing.assert_close(done, plain, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="found_inf needs fused=True"):
        AdamW(done, fused=False).step(found_inf=torch.tensor(0.0))


def test_the_kernel_is_the_default_and_can_be_switched_off(monkeypatch):
    calls = []
    kernel = torch._fused_adam_
    monkeypatch.setattr(torch, "_fused_adam_", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    for fused, count in ((None, 1), (True, 2), (False, 2)):
        AdamW([with_grad(parameter(1.0), 0.5)], fused=fused).step()
        assert len(calls) == count
    monkeypatch.delattr(torch, "_fused_adam_")
    AdamW([with_grad(parameter(1.0), 0.5)]).step()  # a PyTorch without it


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fused", [False, True])
def test_an_update_does_not_wait_for_the_gpu(fused):
    params = [nn.Parameter(torch.ones(3, device="cuda")) for _ in range(2)]
    optimizer = AdamW(params, lr=0.1, weight_decay=0.1, fused=fused)
    for p in params:
        p.grad = torch.ones_like(p)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step(grad_scale=measure_clipping(params, 1.0).divisor)
    finally:
        torch.cuda.set_sync_debug_mode("default")

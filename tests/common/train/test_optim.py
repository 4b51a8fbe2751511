import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common.train.adamw import AdamW
from common.train.optim import (
    apply_lr,
    build_optimizer,
    clip_grad_norm,
    parameter_groups,
)
from common.train.plan import RunPlan
from common.train.schedules import (
    LinearSchedule,
    MultiStepSchedule,
    PlateauSchedule,
    build_schedule,
)


def train_section(**changes):
    values = {
        "LR": 1e-3,
        "LR_MULT": [],
        "OPTIMIZER": "AdamW",
        "WD": 0.01,
        "MOMENTUM": 0.9,
        "BATCH_IMAGES": 4,
        "GRAD_ACCUMULATE_STEPS": 1,
        "END_EPOCH": 2,
        "LR_SCHEDULE": "triangle",
        "LR_FACTOR": 0.1,
        "LR_STEP": (),
        "WARMUP": True,
        "WARMUP_STEPS": 4,
        "WARMUP_FACTOR": 0.0,
        "WARMUP_METHOD": "linear",
    }
    return SimpleNamespace(**{**values, **changes})


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def with_grad(param: nn.Parameter, *grad: float) -> nn.Parameter:
    param.grad = torch.tensor(grad, dtype=param.dtype)
    return param


class TestAdamW:
    def test_first_step_by_hand(self):
        p = with_grad(parameter(1.0), 0.5)
        AdamW([p], lr=0.1, eps=0.01, weight_decay=0.2).step()
        m, v = 0.1 * 0.5, 0.001 * 0.25
        step_size = 0.1 * math.sqrt(1 - 0.999) / (1 - 0.9)
        updated = 1.0 - step_size * m / (math.sqrt(v) + 0.01)  # eps beside the uncorrected root
        assert p.item() == pytest.approx(updated - 0.1 * 0.2 * updated, rel=1e-12)  # decay of the updated value

    def test_parameters_with_different_step_counts(self):
        """A parameter without a gradient stays, and its correction counts its own steps."""
        together, alone = [parameter(1.0), parameter(2.0)], [parameter(1.0), parameter(2.0)]
        joint = AdamW(together, lr=0.1)
        apart = [AdamW([p], lr=0.1) for p in alone]
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

    def test_state_dict_goes_on_and_has_the_original_keys(self):
        p = with_grad(parameter(1.0, 2.0), 0.1, -0.2)
        optimizer = AdamW([p], lr=0.1, weight_decay=0.1)
        optimizer.step()
        state = copy.deepcopy(optimizer.state_dict())  # as from a file; the dict itself shares the moments
        assert set(state["param_groups"][0]) == {"lr", "betas", "eps", "weight_decay", "correct_bias", "params"}
        assert state["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert type(state["state"][0]["step"]) is int

        q = nn.Parameter(p.detach().clone())
        resumed = AdamW([q], lr=7.0)
        resumed.load_state_dict(state)
        q.grad = p.grad.clone()
        optimizer.step()
        resumed.step()
        torch.testing.assert_close(q, p, rtol=0, atol=0)
        assert type(resumed.state[q]["step"]) is int

    def test_no_bias_correction(self):
        p = with_grad(parameter(1.0), 2.0)
        AdamW([p], lr=0.1, eps=0.0, correct_bias=False).step()
        assert p.item() == pytest.approx(1 - 0.1 * 0.2 / math.sqrt(0.004), rel=1e-12)

    def test_sparse_gradient_raises(self):
        table = nn.Embedding(3, 2, sparse=True)
        table(torch.tensor([1])).sum().backward()
        with pytest.raises(RuntimeError, match="sparse"):
            AdamW(table.parameters()).step()

    def test_bad_arguments_raise(self):
        with pytest.raises(ValueError, match="lr=-1"):
            AdamW([parameter(1.0)], lr=-1)


class TestGroups:
    def test_one_group_per_substring_then_the_rest(self):
        named = [(name, parameter(0.0)) for name in ("bert.w", "head.w", "bert.b", "scale")]
        named[3][1].requires_grad_(False)  # frozen ones are members
        groups = parameter_groups(named, 2.0, [("head", 10.0), ("bert", 0.5)])
        ids = {id(p): name for name, p in named}
        assert [[ids[id(p)] for p in g["params"]] for g in groups] == [["head.w"], ["bert.w", "bert.b"], ["scale"]]
        assert [g["lr"] for g in groups] == [20.0, 1.0, 2.0]

    def test_shared_parameter_once_under_its_first_name(self):
        shared = parameter(0.0)
        groups = parameter_groups([("embed", shared), ("decoder", shared)], 1.0, [("decoder", 2.0)])
        assert [len(g["params"]) for g in groups] == [0, 1]

    def test_ambiguous_name_raises(self):
        with pytest.raises(ValueError, match=r"'bert\.head\.w'.*'bert', 'head'"):
            parameter_groups([("bert.head.w", parameter(0.0))], 1.0, [("bert", 1.0), ("head", 2.0)])

    @pytest.mark.parametrize("name, cls", [("SGD", torch.optim.SGD), ("Adam", torch.optim.Adam), ("AdamW", AdamW)])
    def test_build_optimizer(self, name, cls):
        cfg = train_section(OPTIMIZER=name, LR_MULT=[("a", 3.0)])
        optimizer = build_optimizer(cfg, [("a", parameter(0.0)), ("b", parameter(0.0))], 0.5)
        assert isinstance(optimizer, cls)
        assert [(g["initial_lr"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
            (1.5, 1.5, 0.01),
            (0.5, 0.5, 0.01),
        ]

    def test_unknown_optimizer_raises(self):
        with pytest.raises(ValueError, match="'Lion'"):
            build_optimizer(train_section(OPTIMIZER="Lion"), [("a", parameter(0.0))], 1.0)


class TestSchedules:
    def test_triangle(self):
        schedule = LinearSchedule(warmup_steps=4, total_steps=20)
        assert [schedule(k) for k in range(1, 6)] == [0.25, 0.5, 0.75, 1.0, 0.9375]
        assert schedule(20) == schedule(25) == 0

    def test_step(self):
        schedule = MultiStepSchedule((6, 12), 0.1, warmup_steps=4, warmup_factor=0.0)
        assert [schedule(k) for k in range(1, 7)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.1])
        assert schedule(12) == pytest.approx(0.01)

    def test_constant_warmup(self):
        schedule = MultiStepSchedule((), 0.1, warmup_steps=2, warmup_factor=0.25, warmup_method="constant")
        assert [schedule(k) for k in range(4)] == [0.25, 0.25, 1, 1]

    def test_bad_step_schedules_raise(self):
        with pytest.raises(ValueError, match="sorted"):
            MultiStepSchedule((12, 6), 0.1)
        with pytest.raises(ValueError, match="'cosine'"):
            MultiStepSchedule((), 0.1, warmup_method="cosine")

    def test_plateau_falls_after_two_bad_validations_and_resumes(self):
        schedule = PlateauSchedule(factor=0.5)
        factors = []
        for value in (0.3, 0.3, 0.3):
            schedule.observe(value)
            factors.append(schedule(1))
        assert factors == [1, 1, 0.5]
        resumed = PlateauSchedule(factor=0.5)
        resumed.load_state_dict(schedule.state_dict())
        for value in (0.2, 0.2, 0.2, 0.2, 0.2):  # two of them are the cooldown
            schedule.observe(value)
            resumed.observe(value)
            assert schedule(1) == resumed(1)
        assert resumed(1) == 0.25

    def test_build_counts_optimizer_steps(self):
        plan = RunPlan(replicas=1, processes=1, samples=1, accumulation=4, lr=1.0, batches_per_epoch=101, epochs=3)
        assert build_schedule(train_section(), plan) == LinearSchedule(4, 75)
        cfg = train_section(LR_SCHEDULE="step", LR_STEP=(1.0, 2.5), WARMUP=False)
        assert build_schedule(cfg, plan) == MultiStepSchedule((25, 63), 0.1, 0, 0.0, "linear")
        assert isinstance(build_schedule(train_section(LR_SCHEDULE="plateau"), plan), PlateauSchedule)
        with pytest.raises(ValueError, match="'cosine'"):
            build_schedule(train_section(LR_SCHEDULE="cosine"), plan)

    def test_apply_lr(self):
        optimizer = build_optimizer(
            train_section(LR_MULT=[("a", 2.0)]), [("a", parameter(0.0)), ("b", parameter(0.0))], 1.0
        )
        apply_lr(optimizer, 0.5)
        apply_lr(optimizer, 0.25)
        assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.25]


def test_clip_grad_norm():
    params = [with_grad(parameter(0.0, 0.0), 3.0, 0.0), with_grad(parameter(0.0), 4.0), parameter(0.0)]
    assert clip_grad_norm(params, 10.0).item() == pytest.approx(5)
    assert params[1].grad.item() == 4  # below the limit nothing changes
    assert clip_grad_norm(params, 1.0).item() == pytest.approx(5)
    torch.testing.assert_close(params[0].grad, torch.tensor([0.6, 0.0], dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [AdamW, torch.optim.SGD])
@pytest.mark.parametrize("limit", [1.0, 100.0, math.inf])
def test_clipping_with_the_step_is_clipping_before_it(kind, limit):
    """Weights and gradients after the step; a step that was left out does not clip the one after it."""
    torch.manual_seed(0)
    grads = [torch.randn(7, 5), torch.randn(11)]
    found = []
    for together in (False, True):
        params = [nn.Parameter(torch.ones(7, 5)), nn.Parameter(torch.ones(11))]
        optimizer = kind(params, lr=0.1)
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad.clone()
        if together and kind is AdamW:
            clip_grad_norm(params, 0.01, optimizer)  # and no step
        norm = clip_grad_norm(params, limit, optimizer if together else None)
        assert norm.item() == pytest.approx(torch.cat([g.flatten() for g in grads]).norm().item(), rel=1e-6)
        optimizer.step()
        found.append([*params, *(p.grad for p in params)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_update_does_not_wait_for_the_gpu():
    params = [nn.Parameter(torch.ones(3, device="cuda")) for _ in range(2)]
    optimizer = AdamW(params, lr=0.1, weight_decay=0.1)
    for p in params:
        p.grad = torch.ones_like(p)
    torch.cuda.set_sync_debug_mode("error")
    try:
        clip_grad_norm(params, 1.0, optimizer)
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


class TestRunPlan:
    def test_numbers(self):
        cfg = SimpleNamespace(GPUS="0,1", TRAIN=train_section(BATCH_IMAGES=[4, 12], GRAD_ACCUMULATE_STEPS=2))
        plan = RunPlan.from_config(cfg, processes=3, batches_per_epoch=7)
        assert plan.effective_batch == 3 * 16 * 2
        assert plan.micro_batches == 2
        assert plan.base_lr == pytest.approx(0.096)
        assert [plan.updates_before(1), plan.total_updates] == [3, 7]
        assert plan.describe() == (
            "3 replicas x 16 samples x 2 accumulated = effective batch 96; learning rate 0.001 x 96 = 0.096; "
            "2 epochs x 7 batches = 7 updates"
        )

    def test_gpus_of_one_process_become_micro_batches(self):
        cfg = SimpleNamespace(GPUS="0,1,2,3", TRAIN=train_section(GRAD_ACCUMULATE_STEPS=2))
        plan = RunPlan.from_config(cfg, 1, 28)
        assert plan.effective_batch == 4 * 4 * 2
        assert plan.micro_batches == 8
        assert plan.total_updates == 2 * 28 // 8
        assert "GPUS names 4 devices" in plan.describe()

    @pytest.mark.parametrize("gpus", ["", "0"])
    def test_one_device(self, gpus):
        plan = RunPlan.from_config(SimpleNamespace(GPUS=gpus, TRAIN=train_section()), 1, 7)
        assert (plan.replicas, plan.micro_batches) == (1, 1)


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


def test_a_step_tells_that_the_weights_changed():
    """Copies of weights in another number format are made again by their version."""
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    before = p._version
    AdamW([p], lr=0.1).step()
    assert p._version > before

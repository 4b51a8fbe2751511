import math

import pytest
import torch
from torch import nn

from common.train.adamw import AdamW
from common.train.optim import (
    apply_lr,
    build_optimizer,
    clip_grad_norm,
    divide_gradients,
    gradient_norm,
    measure_clipping,
    parameter_groups,
)
from tests.common.train.sections import parameter, train_section, with_grad


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

    def test_adamw_by_the_formula(self):
        assert not build_optimizer(train_section(), [("a", parameter(0.0))], 1.0, fused=False).fused
        assert build_optimizer(train_section(), [("a", parameter(0.0))], 1.0).fused

    def test_sgd_is_not_fused_on_a_cpu(self):
        optimizer = build_optimizer(train_section(OPTIMIZER="SGD"), [("a", parameter(0.0))], 1.0)
        assert optimizer.defaults["fused"] is None

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    @pytest.mark.parametrize(("precision", "fused"), [("bf16", True), ("fp16", None), ("", True)])
    def test_sgd_is_one_kernel_on_a_gpu(self, precision, fused):
        section = train_section(OPTIMIZER="SGD", PRECISION=precision, FP16=False)
        assert (
            build_optimizer(section, [("a", torch.nn.Parameter(torch.zeros(3, device="cuda")))], 1.0).defaults["fused"]
            is fused
        )

    def test_unknown_optimizer_raises(self):
        with pytest.raises(ValueError, match="'Lion'"):
            build_optimizer(train_section(OPTIMIZER="Lion"), [("a", parameter(0.0))], 1.0)


def test_apply_lr():
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


def test_what_clipping_measures():
    params = [with_grad(parameter(0.0, 0.0), 3.0, 0.0), with_grad(parameter(0.0), 4.0), parameter(0.0)]
    norm, divisor = measure_clipping(params, 2.0)
    assert (norm.item(), divisor.item()) == (pytest.approx(5), pytest.approx(2.5, rel=1e-5))
    assert params[1].grad.item() == 4  # nothing is divided
    assert measure_clipping(params, 10.0).divisor.item() == 1
    assert measure_clipping(params, math.inf).divisor is None
    assert measure_clipping([parameter(1.0)], 1.0) == (torch.tensor(0.0), None)
    divide_gradients(params, divisor)
    assert params[1].grad.item() == pytest.approx(1.6, rel=1e-5)


def test_both_norms_agree(monkeypatch):
    """The one of dot products is the default on CPUs; PyTorch's own is the other."""
    torch.manual_seed(0)
    grads = [torch.randn(300, 200), torch.randn(50)[::2], torch.tensor(2.0)]
    want = torch.cat([g.double().flatten() for g in grads]).norm()
    torchs = []
    total = nn.utils.get_total_norm
    monkeypatch.setattr(nn.utils, "get_total_norm", lambda *a, **k: torchs.append(1) or total(*a, **k))
    for fused, calls in ((True, 0), (False, 1)):
        assert gradient_norm(grads, fused).item() == pytest.approx(want.item(), rel=1e-6)
        assert len(torchs) == calls
    params = [nn.Parameter(torch.zeros_like(g)) for g in grads]
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad.clone()
    assert clip_grad_norm(params, 1.0, fused=False).item() == pytest.approx(want.item(), rel=1e-6)
    assert len(torchs) == 2

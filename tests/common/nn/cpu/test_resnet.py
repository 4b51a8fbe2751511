"""Frozen norms, sums and ReLUs as parts of convolutions change nothing but the time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from common.nn.cpu.resnet import conv_norm, conv_norm_relu
from common.nn.resnet import FrozenBatchNorm2d


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_a_frozen_norm_in_the_convolution_changes_nothing(stride, dilation):
    """Values and the gradient of the weight that trains, against convolution and norm one after the other."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
    norm = FrozenBatchNorm2d(8)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 9, 11, requires_grad=True)
    found = []
    for out in (conv_norm(x, conv, norm), norm(conv(x))):
        found.append([out, *torch.autograd.grad(out.square().sum(), [x, conv.weight])])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)


class Operators(TorchDispatchMode):
    """Counts the operators of a context that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(func._schema.name.removeprefix("aten::"))
        return func(*args, **kwargs or {})


def test_the_fold_is_computed_once_and_again_after_a_change():
    torch.manual_seed(0)
    conv, norm, x = nn.Conv2d(3, 4, 1, bias=False), FrozenBatchNorm2d(4), torch.randn(2, 3, 5, 5)

    def compare() -> list[str]:
        with Operators() as operators:
            out = conv_norm(x, conv, norm)
        torch.testing.assert_close(out, norm(conv(x)), atol=1e-5, rtol=1e-5)
        return operators.names

    with torch.inference_mode():
        assert "rsqrt" in compare()
    for _ in range(2):
        assert compare() == ["mul", "convolution"]
        with torch.no_grad():
            conv.weight.mul_(2.0)  # as an optimizer step
    conv_norm(x, conv, norm).sum().backward()  # the scale of an evaluation is part of the graph
    state = norm.state_dict() | {"running_var": torch.tensor([0.5, 1.0, 2.0, 3.0]), "bias": torch.ones(4)}
    norm.load_state_dict(state)
    assert "rsqrt" in compare()
    norm.running_mean = torch.ones(4)
    assert "rsqrt" in compare()
    assert list(norm.state_dict()) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    conv, norm, x = conv.double(), norm.double(), x.double()
    assert "rsqrt" in compare()


def test_a_norm_that_trains_is_not_folded():
    conv, norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
    out = conv_norm(torch.randn(8, 3, 5, 5), conv, norm)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2)])
def test_bf16_on_a_cpu_is_float32_but_for_rounding(with_residual, stride, dilation):
    """Outputs and gradients of input, weight and residual."""
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 32, 3, stride, dilation, dilation, bias=False)
    norm = FrozenBatchNorm2d(32)
    norm.running_mean.normal_()
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    x = torch.randn(2, 16, 10, 14).bfloat16().float().contiguous(memory_format=torch.channels_last).requires_grad_()
    size = norm(conv(x)).shape
    residual = torch.randn(size).bfloat16().float().requires_grad_() if with_residual else None
    inputs = [x, conv.weight, *([residual] if with_residual else [])]
    weight = torch.randn(size)
    found = []
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = conv_norm_relu(x, conv, norm, residual)
        assert out.dtype == (torch.bfloat16 if low else torch.float32) and (out >= 0).all()
        found.append([out, *torch.autograd.grad((out * weight).sum(), inputs)])
    for want, got in zip(*found, strict=True):
        assert (got.float() - want).norm() <= 0.03 * want.norm()
    assert found[1][1].dtype == found[1][2].dtype == torch.float32

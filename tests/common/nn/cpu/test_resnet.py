"""Frozen norms, sums and ReLUs as parts of convolutions change nothing but the time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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

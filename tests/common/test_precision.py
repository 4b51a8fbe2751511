from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common.precision import Precision, resolve_precision, set_tf32

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def tf32_flags():
    """Returns a function that reads both flags, products first. They are restored afterwards."""

    def flags() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = flags()
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True  # the defaults of PyTorch
    yield flags
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_the_same_for_products_and_convolutions(allowed, tf32_flags):
    set_tf32(allowed, "cuda:1")
    assert tf32_flags() == (allowed, allowed)


def test_a_cpu_leaves_tf32_alone(tf32_flags):
    set_tf32(True, "cpu")
    assert tf32_flags() == (False, True)


def model_and_optimizer(device="cpu"):
    torch.manual_seed(0)
    model = nn.Linear(4, 1).to(device)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def loss_of(model, precision):
    with precision.autocast():
        return model(torch.ones(2, 4, device=model.weight.device)).float().pow(2).mean()


@pytest.mark.parametrize(
    "configured, fp16, name", [("", False, "fp32"), ("", True, "fp16"), ("bf16", True, "bf16"), ("auto", False, "auto")]
)
def test_resolve(configured, fp16, name):
    assert resolve_precision(SimpleNamespace(TRAIN=SimpleNamespace(PRECISION=configured, FP16=fp16))) == name


@pytest.mark.parametrize(
    "found, name",
    [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "fp32"), ({}, "fp32")],
)
def test_auto_is_bf16_where_the_processor_has_it(found, name, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert Precision("auto", "cpu").name == name
    assert Precision("auto", "meta").name == "fp32"


def test_resolve_unknown_raises():
    with pytest.raises(ValueError, match="'int8' is not one of fp32, bf16, fp16, auto"):
        resolve_precision(SimpleNamespace(TRAIN=SimpleNamespace(PRECISION="int8", FP16=False)))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("name, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_step_in_each_format(name, dtype, device):
    """The forward computes in the format, the weights stay fp32, and the step is that of fp32 up to rounding."""
    model, optimizer = model_and_optimizer(device)
    reference, reference_optimizer = model_and_optimizer(device)
    precision = Precision(name, device, loss_scale=128.0)
    with precision.autocast():
        assert model(torch.ones(2, 4, device=device)).dtype == dtype
    precision.backward(loss_of(model, precision))
    precision.unscale(optimizer)
    loss_of(reference, Precision("fp32", device)).backward()
    torch.testing.assert_close(model.weight.grad, reference.weight.grad, atol=0.02, rtol=0.02)
    assert precision.step(optimizer)
    reference_optimizer.step()
    assert model.weight.dtype == torch.float32
    torch.testing.assert_close(model.weight, reference.weight, atol=0.002, rtol=0.02)


def test_accumulated_micro_steps_are_unscaled_once():
    model, optimizer = model_and_optimizer()
    precision = Precision("fp16", "cpu", loss_scale=128.0)
    precision.backward(loss_of(model, precision))
    once = model.weight.grad.clone() / 128
    precision.backward(loss_of(model, precision))
    precision.unscale(optimizer)
    torch.testing.assert_close(model.weight.grad, 2 * once)


def overflow(precision, model, optimizer) -> bool:
    """A step whose gradients are infinite."""
    optimizer.zero_grad()
    precision.backward(loss_of(model, precision))
    model.weight.grad.fill_(float("inf"))
    return precision.step(optimizer)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_overflow_leaves_the_step_out_and_halves_a_dynamic_scale(device):
    model, optimizer = model_and_optimizer(device)
    before = model.weight.detach().clone()
    precision = Precision("fp16", device, loss_scale="dynamic", scale_range=(32.0, 100.0))
    assert precision.scale() == 100  # starts inside the range
    assert not overflow(precision, model, optimizer)
    assert torch.equal(model.weight, before)
    assert precision.scale() == 50
    overflow(precision, model, optimizer)
    assert precision.scale() == 32


def test_overflow_keeps_a_static_scale():
    model, optimizer = model_and_optimizer()
    precision = Precision("fp16", "cpu", loss_scale=128.0)
    assert not overflow(precision, model, optimizer)
    assert precision.scale() == 128


def test_dynamic_scale_grows_up_to_the_range():
    model, optimizer = model_and_optimizer()
    precision = Precision("fp16", "cpu", loss_scale="dynamic", scale_range=(1.0, 150.0))
    precision.load_state_dict({"name": "fp16", "scaler": {**precision.state_dict()["scaler"], "scale": 100.0}})
    precision.scaler.set_growth_interval(1)
    precision.backward(loss_of(model, precision))
    assert precision.step(optimizer)
    assert precision.scale() == 150


@pytest.mark.parametrize(
    ("name", "scale", "lowest"),
    [("fp16", 128.0, True), ("fp16", "dynamic", False), ("bf16", 128.0, False), ("fp32", "dynamic", False)],
)
def test_at_lowest_scale(name, scale, lowest):
    assert Precision(name, "cpu", scale).at_lowest_scale() == lowest


def test_a_dynamic_scale_reaches_its_lowest_value():
    precision = Precision("fp16", "cpu", "dynamic", (50.0, 100.0))
    assert not precision.at_lowest_scale()
    overflow(precision, *model_and_optimizer())
    assert precision.at_lowest_scale()


def test_state_goes_on():
    precision = Precision("fp16", "cpu", loss_scale="dynamic")
    overflow(precision, *model_and_optimizer())
    resumed = Precision("fp16", "cpu", loss_scale="dynamic")
    resumed.load_state_dict(precision.state_dict())
    assert resumed.scale() == precision.scale() == 2.0**15
    other = Precision("bf16", "cpu")
    other.load_state_dict(precision.state_dict())  # a change of format between runs is allowed
    resumed.load_state_dict(other.state_dict())
    static = Precision("fp16", "cpu", loss_scale=64.0)
    static.load_state_dict(precision.state_dict())
    assert static.scale() == 64


def test_errors():
    with pytest.raises(ValueError, match="meta"):
        Precision("bf16", "meta")
    with pytest.raises(ValueError, match="'auto'"):
        Precision("fp16", "cpu", loss_scale="auto")
    with pytest.raises(ValueError, match="scale_range"):
        Precision("fp16", "cpu", scale_range=(8.0, 4.0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_cuda_without_a_gpu_raises():
    with pytest.raises(ValueError, match="no CUDA device"):
        Precision("fp16", "cuda")

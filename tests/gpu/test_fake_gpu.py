"""The shim, and the lookalike's own rules: each must find what it is there to find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import fake_gpu
from tests.paths import ROOT

START = """
import torch
from tests.gpu.lookalike import CudaLike, DeviceMixing, FakeGpu
gpu = FakeGpu()
def kinds(run):
    start = len(gpu.waits)
    run()
    return [wait.kind for wait in gpu.waits[start:]]
def raises(run):
    try:
        run()
    except DeviceMixing:
        return True
    return False
"""


def run(shim: Path, code: str, gpus: int = 1) -> str:
    """The output of Python code in a process with fake GPUs."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=fake_gpu.environment(shim, gpus), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_pytorch_finds_the_gpus(shim):
    code = "from torch import cuda; print(cuda.device_count(), cuda.get_device_capability(1), cuda.is_bf16_supported())"
    assert run(shim, code, gpus=2) == "2 (9, 0) True"


def test_tensors_of_two_devices_are_an_error(shim):
    code = (
        START
        + """
with gpu:
    x, y = torch.ones(3, device="cuda"), torch.ones(3)
    print(raises(lambda: x + y), raises(lambda: torch.cat([x, y])), raises(lambda: x + torch.tensor(1.0)))
    print(raises(lambda: torch.index_select(x, 0, torch.tensor([0]))), raises(lambda: x * 2), (x + x).held.tolist())
"""
    )
    assert run(shim, code).splitlines() == ["True True False", "True False [2.0, 2.0, 2.0]"]


def test_waits_are_found(shim):
    code = (
        START
        + """
with gpu:
    x, mask = torch.ones(3, device="cuda"), torch.ones(3, dtype=torch.bool).pin_memory().to("cuda", non_blocking=True)
    for one in (lambda: x[mask], lambda: x.sum().item(), lambda: bool(mask.any()), lambda: x.cpu(), lambda: x.tolist(),
                lambda: torch.zeros(3).to("cuda"), lambda: torch.tensor(5.0, device="cuda"), lambda: mask.nonzero(),
                torch.cuda.synchronize):
        print(kinds(one))
    for one in (lambda: torch.zeros(3).pin_memory().to("cuda", non_blocking=True), lambda: x + 1, lambda: x[:2],
                lambda: torch.full((), 5.0, device="cuda"), lambda: x.to("cpu", non_blocking=True)):
        assert kinds(one) == []
"""
    )
    assert run(shim, code).splitlines() == [
        "['mask as an index']",
        "['item']",
        "['item']",
        "['copy to the host']",
        "['copy to the host']",
        "['copy to the device']",
        "['torch.tensor(value, device=cuda)']",
        "['nonzero']",
        "['synchronize']",
    ]


def test_kernels_are_counted_and_views_are_not(shim):
    code = (
        START
        + """
with gpu:
    x = torch.ones(4, 4, device="cuda")
    gpu.kernels.clear()
    y = (x @ x).t()[0] + 1
    print([(k.name, k.launches, k.flops) for k in gpu.kernels])
"""
    )
    assert run(shim, code) == "[('mm', 1, 128), ('add', 1, 0.0)]"


def test_large_tensors_have_shapes_and_no_values(shim):
    code = (
        START
        + """
gpu.limit = 10
with gpu, torch.autograd.set_multithreading_enabled(False):
    w = torch.ones(8, 8, device="cuda", requires_grad=True)
    loss = (torch.ones(3, 8, device="cuda") @ w).sum()
    loss.backward()
    print(w.grad.shape, w.held.device, loss.item())
"""
    )
    assert run(shim, code) == "torch.Size([8, 8]) meta 0.0"


def test_the_reason_is_given_where_there_is_no_compiler(tmp_path, monkeypatch):
    if fake_gpu.torch.version.cuda is None:
        pytest.skip("not a CUDA build of PyTorch")
    monkeypatch.setattr(fake_gpu, "compiler", lambda: None)
    with pytest.raises(fake_gpu.Unavailable, match="no C compiler"):
        fake_gpu.build(tmp_path)

"""What the forecast of memory is made of; the figure itself needs a GPU."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import types

import pytest
import torch

from common.config import load_config
from common.data.sample import Batch
from common.precision import Precision
from common.task import load_task
from common.train import memory
from tests.tiny import tiny_vqa, write_settings
from vqa.made_up import MADE_UP


@pytest.fixture
def cfg(tiny_world, tmp_path):
    return load_config("vqa", write_settings(tiny_vqa(tiny_world, tmp_path), tmp_path / "tiny.yaml"))


def test_every_sample_of_the_worst_batch_is_the_largest(cfg):
    batch = memory.worst_batch(MADE_UP, cfg)
    assert len(batch) == cfg.TRAIN.BATCH_IMAGES == 8
    assert batch.box_mask.all() and batch.text_mask.all()


def test_a_dry_run_leaves_no_trace(cfg):
    model = load_task("vqa").build_model(cfg).eval()
    model.register_buffer("count", torch.zeros(1))
    model.register_forward_pre_hook(lambda module, _: setattr(module, "count", module.count + 1))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    gradients = []
    first = next(p for p in model.parameters() if p.requires_grad)
    first.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.clone()))
    memory.dry_run(model, memory.worst_batch(MADE_UP, cfg), Precision("fp32", "cpu"))
    assert gradients, "there was no backward"
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.training and all(p.grad is None for p in model.parameters())


def test_an_error_leaves_none_either(cfg):
    model = load_task("vqa").build_model(cfg)
    batch = memory.worst_batch(MADE_UP, cfg)
    with pytest.raises(ValueError, match="no region features"):
        memory.dry_run(model, dataclasses.replace(batch, features=None), Precision("fp32", "cpu"))
    assert model.training and all(p.grad is None for p in model.parameters())


def test_what_an_optimizer_keeps():
    model = torch.nn.Linear(10, 10)
    model.bias.requires_grad_(False)
    assert memory.kept_bytes(model, "AdamW") == 2 * 400 and memory.kept_bytes(model, "SGD") == 400


class TestLog:
    """What a run says on a GPU of 4 GiB, of which others hold 3 and this process 0.25."""

    @pytest.fixture
    def forecast(self, cfg, monkeypatch, caplog):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 2**28, 2**32))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**28)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(Batch, "to", lambda batch, device: batch)
        caplog.set_level("INFO")
        gpu = types.SimpleNamespace(device=torch.device("cuda"))

        def run(step) -> str:
            monkeypatch.setattr(memory, "step_bytes", step)
            memory.log_forecast(MADE_UP, cfg, torch.nn.Linear(2**14, 2**10), gpu)
            return caplog.text

        return run

    def test_it_fits(self, forecast):
        text = forecast(lambda *_: 2**29)
        assert "about 0.6 of 1.0 GiB free: 0.5 for a step on a batch of 8 of the largest samples, 0.1 for" in text

    def test_the_optimizer_makes_it_too_much(self, forecast):
        assert "WARNING" in (text := forecast(lambda *_: 2**30)) and "will not fit: smaller TRAIN.BATCH_IMAGES" in text

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (torch.cuda.OutOfMemoryError(), "does not fit into the 1.0 GiB that the GPU has free: smaller"),
            (
                ValueError("an odd config"),
                "no forecast of memory for a batch of 8 of the largest samples: an odd config",
            ),
        ],
    )
    def test_it_cannot_be_told(self, forecast, error, message):
        def fail(*args: object) -> int:
            raise error

        assert message in forecast(fail)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the forecast of memory was not compared with a run")
def test_the_forecast_is_near_what_a_run_takes(cfg):
    device = torch.device("cuda", 0)
    precision = Precision("fp32", device)
    model = load_task("vqa").build_model(cfg).to(device)
    batch = memory.worst_batch(MADE_UP, cfg).to(device)
    forecast = memory.step_bytes(model, batch, precision) + memory.kept_bytes(model, "AdamW")
    optimizer = torch.optim.AdamW(model.parameters())
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(2):
        precision.backward(model(batch).loss)
        optimizer.step()
        optimizer.zero_grad()
    assert 0.8 < forecast / torch.cuda.max_memory_allocated(device) < 1.25


def test_freed_memory_of_a_cpu_is_kept_and_a_gpu_left_alone():
    """In a process of its own: the setting stays for the rest of one."""
    code = (
        "import torch; from common.nn.cpu.memory import keep_freed_memory;"
        "assert not keep_freed_memory(torch.device('cuda'));"
        "assert keep_freed_memory(torch.device('cpu')) in (True, False);"
        "x = [torch.ones(10**7) for _ in range(3)]; del x; assert torch.ones(10**7).sum() == 10**7"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

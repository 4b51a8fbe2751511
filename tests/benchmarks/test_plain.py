"""The baseline does the same work: equal losses, gradients and updates, computed in another way."""

from __future__ import annotations

import random

import pytest
import torch

from benchmarks.measure import Memory, medians
from benchmarks.plain import PLAIN_MODEL, PlainAdamW, plain_clip
from benchmarks.steps import WORKLOADS
from common.config import load_config
from common.data.collate import collate
from common.task import load_task
from common.train.adamw import AdamW
from common.train.optim import clip_grad_norm
from tests.paths import ROOT
from tests.tiny import tiny_vqa, write_settings


@pytest.fixture
def steps(tiny_world, tmp_path):
    """Our model, the plain one with the same weights, both without dropout, and a padded batch."""
    task, settings = load_task("vqa"), write_settings(tiny_vqa(tiny_world, tmp_path), tmp_path / "tiny.yaml")
    models = []
    for overrides in ((), PLAIN_MODEL):
        cfg = load_config("vqa", settings, overrides)
        torch.manual_seed(0)
        models.append(task.build_model(cfg).train())
        for module in models[-1].modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    dataset = task.build_dataset(cfg, "train")
    return *models, collate([dataset.sample(i, random.Random(i)) for i in range(6)])


def test_plain_and_ours_are_the_same_model(steps):
    model, plain, batch = steps
    ours, theirs = model(batch).loss, plain(batch).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours.backward()
    theirs.backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=name)

    clip_grad_norm(model.parameters(), 1.0)
    plain_clip(plain, 1.0)
    for p, kind in ((model, AdamW), (plain, PlainAdamW)):
        kind(p.parameters(), lr=1e-3, weight_decay=1e-2).step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-4)


def test_workloads_name_what_is_there():
    for work in WORKLOADS.values():
        load_config(work.task, ROOT / work.cfg)


def test_memory_is_watched():
    with Memory(torch.device("cpu")) as memory:
        block = torch.ones(40_000_000)
        for _ in range(5):
            block = block + 1
    assert memory.peak > 150_000_000
    assert medians({"a": [3.0, 1.0, 2.0]}) == {"a": 2.0}

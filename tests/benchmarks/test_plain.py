"""The baseline does the same work: equal losses, gradients and updates, computed in another way."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from benchmarks.measure import Memory, medians
from benchmarks.plain import PlainAdamW, all_positions, plain_clip, plainly
from benchmarks.steps import WORKLOADS
from common.config import load_config
from common.data.collate import collate
from common.task import load_task
from common.train.adamw import AdamW
from common.train.optim import clip_grad_norm
from tests.paths import ROOT
from tests.tiny import tiny_vqa, write_settings


@pytest.fixture
def step(tiny_world, tmp_path):
    """A model without dropout and a padded batch."""
    cfg = load_config("vqa", write_settings(tiny_vqa(tiny_world, tmp_path), tmp_path / "tiny.yaml"))
    task = load_task("vqa")
    dataset = task.build_dataset(cfg, "train")
    torch.manual_seed(0)
    model = task.build_model(cfg)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train(), collate([dataset.sample(i, random.Random(i)) for i in range(6)])


def test_plain_and_ours_are_the_same_model(step):
    model, batch = step
    plain = all_positions(copy.deepcopy(model))
    ours = model(batch).loss
    with plainly():
        theirs = plain(batch).loss
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


def test_outside_of_the_block_nothing_is_plain(step):
    model, batch = step
    with plainly():
        pass
    assert model.vlbert.encoder.packed
    model(batch)


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

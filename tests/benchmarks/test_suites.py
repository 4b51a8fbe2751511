"""The suites measure what they say: the same samples from every store, the same scores with an image shared."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from benchmarks import steps
from benchmarks.loading import IMAGES, QUESTIONS, _loader, write_world
from benchmarks.packing import HEADER, measure_packing
from benchmarks.plots import draw
from benchmarks.steps import SPLIT_HEADER, Step, of_one_image, split, split_rows
from common.config import load_config
from common.precision import Precision
from common.task import load_task
from tests.made_up import made_up_batch
from tests.paths import ROOT
from tests.task_check import assert_same

CPU = torch.device("cpu")
SMALL = [
    "NETWORK.PARTIAL_PRETRAIN=",
    "NETWORK.IMAGE_NUM_LAYERS=50",
    "NETWORK.IMAGE_C5_DILATED=false",
    "NETWORK.VLBERT.num_hidden_layers=1",
    "SCALES=[64,96]",
]


@pytest.fixture
def step() -> Step:
    cfg = load_config("refcoco", ROOT / "cfgs/refcoco/base_gt_boxes_4x16G.yaml", SMALL)
    torch.manual_seed(0)
    model = load_task("refcoco").build_model(cfg)
    return Step(model, made_up_batch("refcoco", cfg, 3, 5, 4, equal=True), Precision("fp32", CPU))


def test_questions_about_one_image_have_the_scores_of_copies_of_it(step):
    own, shared = (of_one_image(step.batch, own) for own in (True, False))
    assert len(own.image) == 3 and len(shared.image) == 1
    with torch.no_grad():
        scores = [step.model.eval()(batch).predictions["label_logits"] for batch in (own, shared)]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(scores[0][0], scores[0][1])  # other expressions


def test_the_split_of_a_step_has_all_of_its_parts(step):
    before = [p.clone() for p in step.model.parameters()]
    parts = split(step, CPU)
    assert [*parts] == ["backbone", "RoI head", "encoder", "heads", "other", "optimizer"]
    assert all(seconds > 0 for seconds in parts.values())
    assert any(not torch.equal(p, q) for p, q in zip(step.model.parameters(), before, strict=True))
    assert len(split_rows("x", {"split": {"ours": parts}})[0]) == len(SPLIT_HEADER)


def test_the_split_counts_the_backward_of_each_part(step, monkeypatch):
    """By a clock that only a gradient inside of one part moves on."""
    clock = [0.0]
    monkeypatch.setattr(steps, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            clock[0] += 1.0
            return grad

    places = {
        "backbone": step.model.image_feature_extractor.backbone.layer3[1],
        "RoI head": step.model.image_feature_extractor.roi_head_feature_extractor[1],
        "encoder": step.model.vlbert.encoder.layer[0].intermediate,
        "heads": step.model.final_mlp[0],
    }
    for part, place in places.items():
        with place.register_forward_hook(lambda module, args, output: Slow.apply(output)):
            found = split(step, CPU)
        assert {name: seconds for name, seconds in found.items() if seconds} == {part: 1.0}


def test_the_loaders_of_the_three_forms_give_the_same_samples(tmp_path):
    loaders = [_loader(tmp_path, path, zipped) for path, zipped in write_world(tmp_path).values()]
    samples = [[loader.dataset.sample(i, random.Random(i)) for i in (0, 7)] for loader in loaders]
    assert len(loaders) == 3 and len(loaders[0].dataset) == IMAGES * QUESTIONS
    for other in samples[1:]:
        assert_same(other, samples[0])
    assert samples[0][0].targets["label"].sum() > 0


def test_a_plot_is_a_image(tmp_path):
    pytest.importorskip("matplotlib")
    draw("words", {"fp32": {10: 1.0, 20: 2.0}}, "a machine", tmp_path / "words.png")
    assert (tmp_path / "words.png").read_bytes().startswith(b"\x89PNG")


def test_packing_measures_every_form():
    rows = {row[0]: row[1:] for row in measure_packing(rounds=1, images=3)}
    assert [*rows] == [
        "copy of the file",
        "pack, float32",
        "pack, float16",
        "read JSON",
        "read packed, float32",
        "read packed, float16",
    ]
    assert all(len(row) + 1 == len(HEADER) and int(row[0]) > 0 for row in rows.values())

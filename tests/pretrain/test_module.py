from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from common.config import load_config, replace
from common.metrics import MetricGroup
from common.places import Places
from pretrain.metrics import MLMAccuracy, MVRCAccuracy
from pretrain.module import build_attention_vis, build_multitask, build_single
from tests.made_up import made_up_batch

SIZES = {
    "NETWORK.IMAGE_FINAL_DIM": 16,
    "NETWORK.VLBERT.hidden_size": 16,
    "NETWORK.VLBERT.visual_size": 16,
    "NETWORK.VLBERT.num_hidden_layers": 2,
    "NETWORK.VLBERT.num_attention_heads": 2,
    "NETWORK.VLBERT.intermediate_size": 32,
    "NETWORK.VLBERT.vocab_size": 60,
    "NETWORK.VLBERT.visual_region_classes": 9,
    "NETWORK.VLBERT.visual_scale_object_init": 1.0,
    "NETWORK.IMAGE_NUM_LAYERS": 50,
    "SCALES": [32, 48],
}
MULTITASK = "cfgs/pretrain/base_prec_4x16G_fp32.yaml"
SINGLE = "cfgs/pretrain/base_prec_withouttextonly_4x16G_fp32.yaml"


def config(path: str = MULTITASK, **changes: Any) -> Any:
    return load_config("pretrain", path, SIZES | {f"NETWORK.{k.replace('__', '.')}": v for k, v in changes.items()})


def build(builder, cfg: Any, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return builder(cfg).eval()


def grads(model: nn.Module, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(batch).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(("builder", "path"), [(build_single, SINGLE), (build_multitask, MULTITASK)])
def test_heads_at_targets_equal_heads_everywhere(builder, path, norm_first):
    """Losses, gradients and metrics; the full computation is that of the original."""
    cfg = config(path, MLM_LOSS_NORM_IN_BATCH_FIRST=norm_first, MVRC_LOSS_NORM_IN_BATCH_FIRST=norm_first)
    model, batch = build(builder, cfg), made_up_batch("pretrain", cfg, samples=5, seed=3)
    plain = build(builder, replace(cfg, {"NETWORK.FAST_PATH": False}))
    at_targets, fewer = model(batch), grads(model, batch)
    everywhere, all_of_them = plain(batch), grads(plain, batch)
    assert at_targets.losses.keys() == everywhere.losses.keys()
    for name, value in everywhere.losses.items():
        torch.testing.assert_close(at_targets.losses[name], value, atol=1e-6, rtol=1e-6)
    assert fewer.keys() == all_of_them.keys()
    for name, value in all_of_them.items():
        torch.testing.assert_close(fewer[name], value, atol=1e-6, rtol=1e-4)

    parts = ["wvc", "aux"] if builder is build_multitask else [""]
    results = []
    for output in (at_targets, everywhere):
        metrics = MetricGroup([*(MLMAccuracy(part) for part in parts), MVRCAccuracy()])
        metrics.update(output.values(batch.targets))
        results.append(metrics.state_dict())
    assert results[0] == results[1] and all(m["count"] > 0 for m in results[0].values())

    words = f"mlm_logits{'_' + parts[0] if parts[0] else ''}"
    hidden = batch.targets["mlm_labels"] != -1
    assert at_targets.predictions[words].shape == (hidden.sum(), 60)
    assert everywhere.predictions[words].shape[0] == 5
    chosen = everywhere.predictions[words][:, : hidden.shape[1]][hidden]  # of multitask as wide as its longest text
    torch.testing.assert_close(chosen, at_targets.predictions[words])
    assert at_targets.predictions["mvrc_logits"].shape == (batch.targets["mvrc_mask"].sum(), 9)


def test_without_targets_logits_are_those_of_all_positions():
    """For filling in words of somebody's own caption."""
    cfg = config()
    model, batch = build(build_multitask, cfg), made_up_batch("pretrain", cfg, samples=3)
    bare = dataclasses.replace(batch, targets={}, auxiliary=())
    output = model(bare)
    assert output.loss is None and output.losses == {}
    assert output.predictions["mlm_logits_wvc"].shape == (*batch.text_ids.shape, 60)
    assert output.predictions["mvrc_logits"].shape == (*batch.box_mask.shape, 9)


def test_plain_text_does_not_depend_on_the_captions_beside_it():
    cfg = config()
    model = build(build_multitask, cfg)
    one, other = (made_up_batch("pretrain", cfg, samples=2, seed=s) for s in (1, 2))
    mixed = dataclasses.replace(other, auxiliary=one.auxiliary)
    torch.testing.assert_close(model(one).losses["mlm_loss_aux"], model(mixed).losses["mlm_loss_aux"])
    assert not torch.allclose(model(one).losses["mlm_loss_wvc"], model(mixed).losses["mlm_loss_wvc"])
    twice = dataclasses.replace(one, auxiliary=one.auxiliary * 2)  # two corpora: rows of both
    torch.testing.assert_close(model(twice).losses["mlm_loss_aux"], model(one).losses["mlm_loss_aux"])


def test_a_hidden_region_shows_nothing_of_its_feature():
    """The batch is not written to, so that a second pass gives the same (original 5.19)."""
    cfg = config(SINGLE)
    model, batch = build(build_single, cfg), made_up_batch("pretrain", cfg, samples=2)
    before = batch.features.clone()
    loss = model(batch).loss
    loss.backward()
    assert torch.equal(batch.features, before) and torch.equal(model(batch).loss, loss)
    hidden = batch.targets["mvrc_ops"] == 1
    changed = dataclasses.replace(batch, features=torch.where(hidden[..., None], 99.0, batch.features))
    assert torch.equal(model(changed).loss, loss)
    seen = dataclasses.replace(batch, features=torch.where(hidden[..., None], batch.features, 99.0))
    assert not torch.equal(model(seen).loss, loss)


@pytest.mark.parametrize("builder", [build_single, build_multitask])
def test_features_are_masked_where_pixels_are_not(builder):
    """In the module of captions alone too, where the original left such regions visible (original 5.18)."""
    path = SINGLE if builder is build_single else MULTITASK
    for raw in (True, False):
        cfg = config(path, IMAGE_FEAT_PRECOMPUTED=False, MASK_RAW_PIXELS=raw)
        model = build(builder, cfg)
        assert ("object_mask_visual_embedding.weight" in model.state_dict()) == (not raw)
        if not raw:
            batch = made_up_batch("pretrain", cfg, samples=1, boxes=4)
            model(batch).loss.backward()
            assert model.object_mask_visual_embedding.weight.grad.any()


def test_a_switched_off_loss_is_zero():
    cfg = config(WITH_MVRC_LOSS=False)
    model, batch = build(build_multitask, cfg), made_up_batch("pretrain", cfg)
    output = model(batch)
    assert output.losses["mvrc_loss"] == output.losses["relationship_loss"] == 0
    words = output.losses["mlm_loss_wvc"] + output.losses["mlm_loss_aux"]
    torch.testing.assert_close(output.loss, words)
    model = build(build_multitask, config(WITH_MLM_LOSS=False))  # crashed in the release (original 5.23)
    output = model(batch)
    assert output.losses["mlm_loss_wvc"] == output.losses["mlm_loss_aux"] == 0 and output.loss > 0


def test_the_relationship_of_each_sample():
    cfg = config(WITH_REL_LOSS=True, VLBERT__with_pooler=True)
    model, batch = build(build_multitask, cfg), made_up_batch("pretrain", cfg, samples=4)
    output = model(batch)
    logits = output.predictions["relationship_logits"]
    assert logits.shape == (4, 2)
    expected = nn.functional.cross_entropy(logits, batch.targets["relationship_label"])
    torch.testing.assert_close(output.losses["relationship_loss"], expected)


def test_a_batch_without_any_target():
    """Happens about once in a thousand steps of a small batch: no NaN, and no head without gradients."""
    cfg = config()
    model, batch = build(build_multitask, cfg), made_up_batch("pretrain", cfg, samples=2)
    for part in (batch, *batch.auxiliary):
        part.targets["mlm_labels"].fill_(-1)
        part.places = Places()
    batch.targets["mvrc_mask"].fill_(False)
    batch.targets["mvrc_labels"] = torch.zeros(2, 0, 9)
    output = model(batch)
    output.loss.backward()
    assert output.loss == 0
    assert all(p.grad is not None and not p.grad.any() for n, p in model.named_parameters() if "head" in n)


def test_attention():
    cfg = load_config("pretrain", "cfgs/pretrain/vis_attention_maps_coco.yaml", SIZES)
    model, batch = build(build_attention_vis, cfg), made_up_batch("pretrain", cfg, samples=2, boxes=5, words=4)
    shown = model(batch).predictions
    length = shown["mask"].shape[1]
    assert shown["attention_probs"].shape == (2, 2, 2, length, length)
    assert shown["hidden_states"].shape == (2, 2, length, 16)
    rows = shown["attention_probs"].sum(-1)[shown["mask"][:, None, None].expand(-1, 2, 2, -1)]
    torch.testing.assert_close(rows, torch.ones_like(rows))

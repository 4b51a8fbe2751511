"""The check values of original 8.22: a small network with weights by a formula, on a batch by a formula."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.config import Config, load_config
from common.data.collate import pad_stack
from common.data.sample import Batch
from common.data.text import join_segments
from common.nn.fast_rcnn import FastRCNN
from tests.paths import ROOT
from vcr.module import VLBertForVCR, build_model

CLS, SEP = 2, 3
SMALL = {
    "NETWORK.IMAGE_NUM_LAYERS": 50,
    "NETWORK.IMAGE_FINAL_DIM": 32,
    "NETWORK.CLASSIFIER_DROPOUT": 0.0,
    **{
        f"NETWORK.VLBERT.{key}": value
        for key, value in {
            "visual_size": 32,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "vocab_size": 40,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }.items()
    },
}
QUESTIONS = [
    [(6, 0), (7, 0), (9, 3), (5, 0), (8, 1), (21, 0), (22, 0)],
    [(6, 0), (7, 0), (21, 1), (22, 0)],
]
CHOICES = [
    [[(27, 0), (7, 0), (9, 3)], [(8, 1), (21, 0)], [(24, 0)], [(25, 2), (36, 3), (23, 0)]],
    [[(26, 1)], [(30, 0), (31, 0)], [(26, 1), (7, 0), (21, 0)], [(33, 0)]],
]


@cache
def formula(key: str, shape: tuple[int, ...]) -> Tensor:
    """Original 8.22."""
    last = key.rsplit(".", 1)[-1]
    if last in ("running_mean", "num_batches_tracked"):
        return torch.zeros(shape)
    if last == "running_var":
        return torch.ones(shape)
    if shape == ():
        return torch.tensor(0.5)
    count = int(np.prod(shape))
    h = (sum(key.encode()) % 97) / 97
    u = 2 * ((np.arange(1, count + 1) * 0.6180339887498949 + h) % 1.0) - 1
    if len(shape) == 1:
        u = 1 + 0.1 * u if key.endswith(".weight") else 0.1 * u
    else:
        u = u * np.sqrt(3 / (count / shape[0]))
    return torch.from_numpy(u.astype(np.float32).reshape(shape))


@torch.no_grad()
def network(**changes: Any) -> tuple[VLBertForVCR, Config]:
    cfg = load_config("vcr", ROOT / "cfgs/vcr/base_q2a_4x16G_fp32.yaml", SMALL | changes)
    model = build_model(cfg)
    for key, value in model.state_dict().items():
        if not key.startswith("image_feature_extractor.head."):
            value.copy_(formula(key, tuple(value.shape)))
    return model.eval(), cfg


def batch(cfg: Config) -> Batch:
    """Original 8.22."""
    k = np.arange(2 * 3 * 64 * 128)
    image = (50 * np.sin(0.37 * k) + 20 * np.cos(0.011 * k)).astype(np.float32).reshape(2, 3, 64, 128)
    masks = torch.ones(2, 4, 14, 14)
    masks[0, 1, :7] = 0
    masks[0, 2, :, 9:] = 0
    masks[0, 3] = torch.ones(14, 14).tril()
    masks[1, 1, 3:11, 3:11] = 0
    rows = [[text(q, c, cfg) for c in choices] for q, choices in zip(QUESTIONS, CHOICES, strict=True)]
    ids, segments, tags = (pad_stack([[row[i] for row in four] for four in rows], 0) for i in range(3))
    whole = [0.0, 0, 127, 63]
    return Batch(
        ids=[0, 1],
        im_info=torch.tensor([[128.0, 64, 1, 1]]).expand(2, -1),
        boxes=torch.tensor(
            [
                [whole, [8, 4, 60, 50], [30, 20, 100, 60], [64, 2, 120, 40]],
                [whole, [10, 10, 40, 44], [0] * 4, [0] * 4],
            ]
        ),
        box_mask=torch.tensor([[True] * 4, [True, True, False, False]]),
        box_classes=torch.tensor([[0, 1, 57, 1], [0, 17, 0, 0]]),
        box_masks=masks,
        image=torch.from_numpy(image),
        text_ids=ids,
        segment_ids=segments,
        text_tags=tags,
        text_mask=ids > 0,
        targets={"label": torch.tensor([1, 2])},
    )


def text(query: list[tuple[int, int]], choice: list[tuple[int, int]], cfg: Config) -> tuple[list[int], ...]:
    """Ids, segments and tags of a row in the layout of the config."""
    parts = [choice, query] if cfg.NETWORK.ANSWER_FIRST else [query, choice]
    if cfg.NETWORK.QA_ONE_SENT:
        parts = [query + choice]
    ids, segments = join_segments([[i for i, _ in part] for part in parts], CLS, SEP)
    tags, _ = join_segments([[tag for _, tag in part] for part in parts], 0, 0)
    return ids, segments, tags


@pytest.fixture(scope="module")
def towers() -> dict[bool, Tensor]:
    """What the CNN gives for the six real boxes, [6, 2048], by IMAGE_STRIDE_IN_1x1: it is the slow part."""
    features = {}
    for stride in (True, False):
        model, cfg = network(**{"NETWORK.IMAGE_STRIDE_IN_1x1": stride})
        given = batch(cfg)
        with torch.no_grad():
            features[stride] = model.image_feature_extractor.region_features(
                given.image, given.boxes, given.box_mask, given.box_masks
            )
    return features


def test_the_formulas():
    assert formula("final_mlp.1.weight", (1, 32))[0, :3].tolist() == pytest.approx(
        [0.0028365, -0.2310690, 0.1473980], abs=1e-6
    )
    key = "image_feature_extractor.backbone.conv1.weight"
    assert formula(key, (64, 3, 7, 7)).flatten()[:3].tolist() == pytest.approx(
        [-0.0369682, 0.1396129, 0.0304798], abs=1e-6
    )
    image = batch(network_config()).image.flatten()
    assert image[[0, 1, 2, -3, -2, -1]].tolist() == pytest.approx(
        [20.0, 38.0796, 53.7096, 69.1819, 65.3577, 55.2744], abs=1e-3
    )


def network_config() -> Config:
    return load_config("vcr", ROOT / "cfgs/vcr/base_q2a_4x16G_fp32.yaml", SMALL)


def test_regions(towers):
    """Pooled features under their masks, and the embeddings of the regions, zero where there is no box."""
    pooled = [(1.3909, 5.1134, 3.6131), (0.5922, 2.4925, 1.6975), (0.8706, 3.2469, 2.3492), (0.7968, 3.0196, 2.1632)]
    torch.testing.assert_close(towers[True][:4, :3], torch.tensor(pooled), atol=2e-4, rtol=0)
    model, cfg = network()
    model.image_feature_extractor.region_features = lambda *args: towers[True]
    with torch.no_grad():
        reps = model._regions(batch(cfg))[0][..., :4]
    first = [
        (3.4849, 0, 3.0978, 0),
        (1.7990, 0, 1.5457, 0),
        (2.2344, 0, 2.1690, 0),
        (1.6983, 0, 1.5444, 0),
    ]
    second = [(3.4802, 0, 3.0869, 0), (2.3300, 0, 1.8311, 0), (0, 0, 0, 0), (0, 0, 0, 0)]
    torch.testing.assert_close(reps, torch.tensor([first, second]), atol=2e-4, rtol=0)


FIRST = "-0.141760 0.135956 0.169202 -0.125088 -0.076715 -0.223845 -0.163903 -0.027374"
NO_CLASSES = {"NETWORK.ENABLE_CNN_REG_LOSS": False}
NO_LN = {
    "NETWORK.VLBERT.visual_ln": False,
    "NETWORK.VLBERT.visual_scale_text_init": 0.5,
    "NETWORK.VLBERT.visual_scale_object_init": 0.5,
}
# Changes; logits of both samples; answer loss, class loss, total.
TABLE = {
    "shipped": ({}, FIRST, (0.670893, 4.555190, 5.226082)),
    "ANSWER_FIRST": (
        {"NETWORK.ANSWER_FIRST": True},
        "-0.080580 0.134398 0.145912 -0.098758 0.002273 -0.199154 -0.146332 -0.003432",
        (0.681106, 4.556919, 5.238024),
    ),
    "QA_ONE_SENT": (
        {"NETWORK.QA_ONE_SENT": True},
        "0.176710 0.152784 -0.177220 0.172452 0.236494 -0.031044 -0.266037 0.253234",
        (0.744434, 4.567627, 5.312062),
    ),
    "NO_GROUNDING": (
        {"NETWORK.NO_GROUNDING": True},
        "-0.122782 0.152325 0.180654 -0.107585 -0.053244 -0.224893 -0.163199 -0.024364",
        (0.674359, 4.557611, 5.231969),
    ),
    "NO_OBJ_ATTENTION": (
        {"NETWORK.NO_OBJ_ATTENTION": True, **NO_CLASSES},
        "-0.121299 0.096361 0.184782 -0.105341 -0.083142 -0.214620 -0.156911 -0.033907",
        (0.675896, None, 0.675896),
    ),
    "BLIND": (
        {"NETWORK.BLIND": True, **NO_LN, **NO_CLASSES},
        "-0.517292 -0.549950 -0.769772 -0.656445 -0.522318 -0.635330 -0.505269 -0.405109",
        (0.581327, None, 0.581327),
    ),
    "object_word_embed_mode 1": (
        {"NETWORK.VLBERT.object_word_embed_mode": 1},
        "-0.106051 0.129159 0.080693 -0.091824 -0.085178 -0.217752 -0.161640 -0.045195",
        (0.668058, 4.597426, 5.265483),
    ),
    "object_word_embed_mode 3": (
        {"NETWORK.VLBERT.object_word_embed_mode": 3},
        "-0.091267 0.138274 0.069842 -0.077521 -0.046834 -0.210466 -0.171771 -0.023121",
        (0.673323, 4.636791, 5.310114),
    ),
    "CNN_LOSS_TOP off": ({"NETWORK.CNN_LOSS_TOP": False}, FIRST, (0.670893, 5.929916, 6.600809)),
    "2fc": (
        {"NETWORK.CLASSIFIER_TYPE": "2fc", "NETWORK.CLASSIFIER_HIDDEN_SIZE": 24},
        "-0.137576 -0.037040 -0.193362 -0.130704 -0.068679 -0.189745 -0.260630 -0.077945",
        (0.664832, 4.555190, 5.220021),
    ),
    "CLASSIFIER_SIGMOID off": ({"NETWORK.CLASSIFIER_SIGMOID": False}, FIRST, (1.350161, 4.555190, 5.905351)),
    "POSITIVE_WEIGHT 3": (
        {"NETWORK.CLASSIFIER_SIGMOID_LOSS_POSITIVE_WEIGHT": 3.0},
        FIRST,
        (0.681584, 4.555190, 5.236773),
    ),
    "IMAGE_SEMANTIC": (
        {"NETWORK.IMAGE_SEMANTIC": True},
        "-0.049374 -0.047054 -0.043580 -0.040884 -0.039214 -0.087263 -0.146641 0.005215",
        (0.689917, 4.397695, 5.087611),
    ),
    "visual_ln off": (
        NO_LN,
        "-0.299280 -0.133620 -0.009688 -0.302027 -0.247348 -0.299260 -0.248081 -0.206164",
        (0.638832, 4.538509, 5.177341),
    ),
    "visual_size 16": (
        {"NETWORK.IMAGE_FINAL_DIM": 16, "NETWORK.VLBERT.visual_size": 16},
        "-0.517082 -0.408655 -0.468886 -0.515444 -0.455287 -0.454475 -0.409724 -0.418009",
        (0.593432, 4.548527, 5.141959),
    ),
    "IMAGE_STRIDE_IN_1x1 off": (
        {"NETWORK.IMAGE_STRIDE_IN_1x1": False},
        "-0.141846 0.135153 0.168801 -0.125160 -0.077352 -0.224480 -0.164680 -0.027927",
        (0.670848, 4.554596, 5.225444),
    ),
}


@pytest.mark.parametrize("variant", TABLE)
def test_the_table(variant, towers):
    """Original 8.22, to the tolerance it gives."""
    changes, logits, (answer, classes, total) = TABLE[variant]
    model, cfg = network(**changes)
    if not model.blind:
        assert isinstance(model.image_feature_extractor, FastRCNN)
        model.image_feature_extractor.region_features = lambda *args: towers[cfg.NETWORK.IMAGE_STRIDE_IN_1x1]
    with torch.no_grad():
        out = model(batch(cfg))
    want = torch.tensor([float(number) for number in logits.split()]).view(2, 4)
    torch.testing.assert_close(out.predictions["label_logits"], want, atol=1e-4, rtol=0)
    assert out.losses["ans_loss"].item() == pytest.approx(answer, abs=1e-4)
    assert out.loss.item() == pytest.approx(total, abs=1e-4)
    if classes is None:
        assert "cnn_regularization_loss" not in out.losses
    else:
        assert out.losses["cnn_regularization_loss"].item() == pytest.approx(classes, abs=1e-4)

"""Original 10.9 and 10.10: scores of regions; padded regions must not win."""

import math

import pytest
import torch

from common.data.collate import collate
from common.data.sample import Batch, Sample
from common.nn.fast_rcnn import FEATURE_DIM, FastRCNN
from common.nn.vl_bert import VisualLinguisticBert, VLBertSizes
from refcoco.module import PADDED_LOGIT, VLBertForReferring


def module(**changes) -> VLBertForReferring:
    torch.manual_seed(0)
    sizes = VLBertSizes(
        hidden_size=8,
        visual_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=20,
        visual_scale_object_init=1.0,
        visual_scale_text_init=1.0,
    )
    return VLBertForReferring(FastRCNN(precomputed=True, final_dim=8), VisualLinguisticBert(sizes), **changes).eval()


def sample(boxes: int, label: list[float] | None = None) -> Sample:
    generator = torch.Generator().manual_seed(boxes)
    start = torch.rand(boxes, 2, generator=generator) * 50
    return Sample(
        id=boxes,
        im_info=torch.tensor([200.0, 100.0, 2.0, 0.5]),  # the original is 100 x 200
        boxes=torch.cat([start, start + 20], dim=1),
        text_ids=torch.tensor([2, 7, 9, 3]),
        segment_ids=torch.zeros(4, dtype=torch.int64),
        features=torch.rand(boxes, FEATURE_DIM, generator=generator),
        targets={} if label is None else {"label": torch.tensor(label)},
        target_pads={"label": -1},
    )


def batch(labels: bool = False) -> Batch:
    return collate([sample(4, [0, 1, 0, 0] if labels else None), sample(2, [1, 0] if labels else None)])


@torch.no_grad()
def test_padded_regions_get_a_logit_that_cannot_win():
    logits = module()(batch()).predictions["label_logits"]
    assert logits.shape == (2, 4)
    assert (logits[1, 2:] == PADDED_LOGIT).all() and PADDED_LOGIT == -10000
    assert (logits[batch().box_mask].abs() < 100).all()


@torch.no_grad()
def test_score_padding_restores_the_originals_scores():
    """It scored the zero state of padded regions: relu(bias) through the last layer, here made to win."""
    model = module(score_padding=True)
    model.final_mlp[2].bias.fill_(1.0)
    model.final_mlp[2].weight.mul_(1e-3)
    model.final_mlp[0].dense.bias.zero_()
    logits = model(batch()).predictions["label_logits"]
    assert logits[1, 2:].tolist() == [1.0, 1.0]
    model.score_padding = False
    torch.testing.assert_close(model(batch()).predictions["label_logits"][batch().box_mask], logits[batch().box_mask])


@torch.no_grad()
def test_the_best_box_is_in_pixels_of_the_original_image():
    given = batch()
    out = module()(given).predictions
    for row, best in enumerate(out["label_logits"].argmax(1).tolist()):
        assert given.box_mask[row, best]
        x1, y1, x2, y2 = given.boxes[row, best].tolist()
        assert out["pred_boxes"][row].tolist() == pytest.approx([x1 / 2, y1 / 0.5, x2 / 2, y2 / 0.5])


@torch.no_grad()
@pytest.mark.parametrize("score_padding", [False, True])
def test_the_loss_is_the_mean_over_real_regions(score_padding):
    out = module(score_padding=score_padding)(batch(labels=True))
    logits = out.predictions["label_logits"]
    targets = [[0, 1, 0, 0], [1, 0]]
    terms = [
        math.log1p(math.exp(-x if target else x))
        for row, row_targets in zip(logits.tolist(), targets, strict=True)
        for x, target in zip(row, row_targets, strict=False)
    ]
    assert len(terms) == 6
    assert out.loss.item() == pytest.approx(sum(terms) / 6, rel=1e-5)
    assert out.losses["cls_loss"].item() == out.loss.item()


@torch.no_grad()
def test_without_labels_there_is_no_loss():
    assert module()(batch()).loss is None


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch():
    model = module()
    together, alone = model(batch()).predictions, model(collate([sample(2)])).predictions
    torch.testing.assert_close(together["label_logits"][1, :2], alone["label_logits"][0], atol=1e-6, rtol=1e-5)


def test_own_keys():
    """Original 2.18."""
    own = [k for k in module().state_dict() if not k.startswith(("image_feature_extractor.", "vlbert."))]
    assert own == ["object_linguistic_embeddings.weight"] + [
        f"final_mlp.{part}.{leaf}" for part in ("0.dense", "2") for leaf in ("weight", "bias")
    ]

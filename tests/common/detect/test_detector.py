"""The Visual Genome detector: its network and the class that runs it on images."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from common.detect.detections import Detections
from common.detect.detector import Detector, refine
from common.detect.network import VisualGenomeDetector
from common.errors import RegionError
from common.nn.parts import PLAIN, Parts
from common.regions.arguments import DetectorLimits
from common.weights.build import FAST
from tests.golden.detector import fill_detector

CLASSES, ATTRIBUTES = 9, 5
LIMITS = DetectorLimits(min_boxes=3, max_boxes=5, threshold=0.2)


def build(parts: Parts) -> VisualGenomeDetector:
    return VisualGenomeDetector(
        50, num_proposals=6, num_classes=CLASSES, num_attributes=ATTRIBUTES, roi_chunk=4, parts=parts
    )


@cache
def weights() -> dict[str, Tensor]:
    network = build(PLAIN)
    fill_detector(network, cls_score_gain=2.0)
    return network.state_dict()


def tiny(parts: Parts = PLAIN) -> VisualGenomeDetector:
    network = build(parts)
    network.load_state_dict(weights())
    return network


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Inputs of 200 x 1000 and 1000 x 150 pixels, which are fast."""
    return [photo(100, 20), photo(30, 200, seed=1)]


@pytest.fixture(scope="module")
def plain() -> Detector:
    return Detector(tiny(), LIMITS)


@pytest.fixture(scope="module")
def expected(plain: Detector, images: list[Image.Image]) -> list[Detections]:
    return plain(images)


def test_images_of_different_sizes_together_equal_one_by_one(plain, images, expected):
    for image, want in zip(reversed(images), reversed(expected), strict=True):
        [got] = plain([image])
        for name, value in vars(want).items():
            assert getattr(got, name).equal(value), name


def test_shapes_and_ranges(images, expected):
    for image, found in zip(images, expected, strict=True):
        count = len(found)
        assert 3 <= count <= 5
        assert found.class_scores.shape == (count, CLASSES)
        assert found.attribute_scores.shape == (count, ATTRIBUTES)
        assert found.features.shape == (count, 2048)
        assert found.objectness.shape == found.confidence.shape == (count,)
        for scores in (found.class_scores, found.attribute_scores):
            assert scores.sum(dim=1).tolist() == pytest.approx([1] * count, abs=1e-5)
        for boxes in (found.boxes, found.refined_boxes):
            assert boxes.shape == (count, 4)
            assert boxes.min() >= 0
            assert (boxes <= torch.tensor([image.width, image.height] * 2)).all()
        assert all(value.dtype == torch.float32 for value in vars(found).values())


def test_features_of_given_boxes_are_those_of_the_detection(plain, images, expected):
    features = plain.region_features(images, [found.boxes for found in expected])
    for got, found in zip(features, expected, strict=True):
        torch.testing.assert_close(got, found.features, rtol=1e-4, atol=1e-4)
    assert plain.region_features(images[:1], [torch.zeros(0, 4)])[0].shape == (0, 2048)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_given_box_that_is_not_finite_never_reaches_the_network(plain, images, value):
    good, bad = torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([[0.0, 0, 9, value]])
    with pytest.raises(RegionError, match=rf"^image 2 of 2: box 1 of 1 is not finite: \[0.0, 0.0, 9.0, {value}\]$"):
        plain.region_features(images, [good, bad])


def test_the_fast_network_equals_the_plain_one(images, expected):
    """The same keys, and the same numbers but for rounding."""
    fast = tiny(FAST)
    assert list(fast.state_dict()) == list(tiny().state_dict())
    for got, want in zip(Detector(fast, LIMITS)(images), expected, strict=True):
        torch.testing.assert_close(got.boxes, want.boxes, rtol=0, atol=0.05)
        torch.testing.assert_close(got.features, want.features, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(got.class_scores, want.class_scores, rtol=0, atol=1e-3)
        torch.testing.assert_close(got.attribute_scores, want.attribute_scores, rtol=0, atol=1e-3)


@pytest.mark.parametrize("parts", [PLAIN, FAST], ids=["plain", "fast"])
def test_bf16_is_close_to_float32(parts, plain, images):
    """On the same boxes: where two scores are close, their order differs."""
    boxes = [torch.tensor([[0.0, 0, 19, 15], [5, 2, 16, 19]])] * 2
    want = torch.cat(plain.region_features(images, boxes))
    lower = Detector(tiny(parts), LIMITS, precision=torch.bfloat16)
    got = torch.cat(lower.region_features(images, boxes))
    assert got.dtype == torch.float32
    assert not got.equal(want)
    assert ((got - want).norm(dim=1) / want.norm(dim=1)).max() < 0.03
    [found] = lower(images[:1])
    assert all(value.dtype == torch.float32 for value in vars(found).values())


def test_state_dict_keys():
    network = VisualGenomeDetector(50)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    expected = {
        "backbone.conv1.weight": (64, 3, 7, 7),
        "backbone.bn1.running_var": (64,),
        "backbone.layer3.0.downsample.1.num_batches_tracked": (),
        "head.0.conv1.weight": (512, 1024, 1, 1),
        "head.2.bn3.bias": (2048,),
        "rpn.conv.weight": (512, 1024, 3, 3),
        "rpn.conv.bias": (512,),
        "rpn.objectness.weight": (24, 512, 1, 1),
        "rpn.objectness.bias": (24,),
        "rpn.deltas.weight": (48, 512, 1, 1),
        "rpn.deltas.bias": (48,),
        "cls_score.weight": (1601, 2048),
        "cls_score.bias": (1601,),
        "bbox_pred.weight": (6404, 2048),
        "bbox_pred.bias": (6404,),
        "cls_embedding.weight": (1601, 256),
        "fc_attr.weight": (512, 2304),
        "fc_attr.bias": (512,),
        "attr_score.weight": (401, 512),
        "attr_score.bias": (401,),
    }
    assert {key: shapes.get(key) for key in expected} == expected
    other = {key for key in shapes if not key.startswith(("backbone.", "head."))}
    assert other == {key for key in expected if not key.startswith(("backbone.", "head."))}


def test_regions_in_chunks_equal_all_at_once(images):
    network = tiny()
    boxes: list[Tensor] = [torch.tensor([[0.0, 0, 19, 15], [5, 2, 16, 19], [1, 1, 12, 12]])]
    want = Detector(network).region_features(images[:1], boxes)[0]
    network.roi_chunk = 2
    torch.testing.assert_close(Detector(network).region_features(images[:1], boxes)[0], want)


def test_the_attribute_head_knows_the_class_also_the_background():
    network = tiny()
    features = torch.rand(4, 2048)
    best = network.classify(features).classes.argmax(dim=1)
    before = network.classify(features).attributes
    with torch.no_grad():
        network.cls_embedding.weight[best[0]] += 1
    changed = (network.classify(features).attributes != before).any(dim=1)
    assert changed.equal(best == best[0])
    with torch.no_grad():
        network.cls_score.bias[0] += 1e4
        network.cls_embedding.weight[0] += 1
    assert (network.classify(features).attributes != before).any(dim=1).all()


def test_boxes_are_refined_for_the_best_object_class():
    """Background scores highest. Class 2 moves the box by half its width of 10 pixels, to the image's edge."""
    boxes = torch.tensor([[10.0, 10, 19, 19]])
    classes = torch.tensor([[0.7, 0.1, 0.2]])
    deltas = torch.zeros(1, 12)
    deltas[0, 8:] = torch.tensor([0.5, 0, 0, 0])
    assert refine(boxes, classes, deltas, height=15, width=100).tolist() == [[15, 10, 25, 14]]


def test_an_image_without_proposals_has_no_boxes():
    """The smaller side of the input is below the smallest proposal."""
    [found] = Detector(tiny())([photo(1000, 10)])
    assert {len(value) for value in vars(found).values()} == {0}

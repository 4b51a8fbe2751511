import random

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.transforms import (
    Transform,
    blank_pixels,
    look_up,
    normalise,
    pad_to_canvas,
    pixel_levels,
    resize_ratios,
    resize_size,
    to_tensor,
)

MEANS, STDS = (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0)


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def info(width: int, height: int, *rest: float) -> torch.Tensor:
    return torch.tensor([width, height, 1, 1, *rest], dtype=torch.float32)


@pytest.mark.parametrize(
    ("size", "scales", "want"),
    [  # original 4.2
        ((640, 480), (600, 1000), (800, 600)),
        ((640, 426), (600, 1000), (901, 600)),
        ((640, 427), (600, 1000), (899, 600)),
        ((640, 200), (600, 1000), (998, 312)),
        ((640, 384), (600, 1000), (1000, 600)),
        ((640, 383), (600, 1000), (999, 598)),
        ((640, 600), (600, 1000), (640, 600)),
        ((600, 640), (600, 1000), (600, 640)),
        ((640, 640), (600, 1000), (600, 600)),
        ((200, 100), (600, 1200), (1200, 600)),  # original 4.2
        ((90, 150), (600, 1200), (600, 1000)),
        ((1920, 797), (600, 1200), (1199, 498)),
        ((500, 100), (600, 1200), (1200, 240)),
    ],
)
def test_resize_size(size, scales, want):
    assert resize_size(*size, *scales) == want


def test_ratio_is_the_float32_reciprocal_times_the_new_size():
    ratios = resize_ratios((640, 480), (800, 600))
    assert ratios.dtype == torch.float32
    assert ratios.tolist() == [1.25, pytest.approx(1.2500001192, abs=1e-10)]


def test_pixels_are_bgr_less_the_means():
    image = Image.new("RGB", (2, 1), (255, 128, 0))
    assert to_tensor(image)[:, 0, 0].tolist() == pytest.approx([1.0, 128 / 255, 0.0])
    source = to_tensor(image)
    got = normalise(source, (1.0, 2.0, 3.0), (1.0, 2.0, 4.0))
    assert got[:, 0, 1].tolist() == pytest.approx([-1.0, 63.0, 63.0])
    assert torch.equal(source, to_tensor(image))


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0), (57.4, 57.1, 58.4)])
def test_looked_up_pixels_have_the_bits_of_normalised_ones(stds):
    """All 256 values of each channel, in an order of its own."""
    means = (102.9801, 115.9465, 122.7717)
    values = np.stack([np.random.default_rng(c).permutation(256).reshape(8, 32) for c in range(3)], axis=-1)
    image = Image.fromarray(values.astype(np.uint8))
    got = look_up(image, pixel_levels(means, stds))
    assert got.shape == (3, 8, 32) and got.is_contiguous()
    assert torch.equal(got, normalise(to_tensor(image), means, stds))


def test_the_specified_vcr_example():
    # original 8.8: 200x100 at scales 64, 128.
    boxes, masks = torch.tensor([[0.0, 0, 199, 99, 1, 0]]), torch.arange(4.0).reshape(1, 2, 2)
    arguments = boxes.clone(), masks.clone(), info(200, 100, 17)
    plain = Transform((64, 128), MEANS, STDS, 0.0, fixed_padding=True)
    got = plain(image(200, 100), boxes, arguments[2], masks, random.Random(0))
    assert got.image is not None and got.image.shape == (3, 64, 128)
    torch.testing.assert_close(got.boxes, torch.tensor([[0, 0, 127.36, 63.36, 1, 0]]))
    torch.testing.assert_close(got.im_info, torch.tensor([128, 64, 0.64, 0.64, 17]))
    assert not got.flipped and torch.equal(got.masks, masks)

    mirror = Transform((64, 128), MEANS, STDS, 1.0, fixed_padding=True)
    flipped = mirror(image(200, 100), boxes, arguments[2], masks, random.Random(0))
    torch.testing.assert_close(flipped.boxes, torch.tensor([[-0.36, 0, 127, 63.36, 1, 0]]), atol=1e-4, rtol=0)
    assert flipped.flipped and flipped.masks.tolist() == [[[1, 0], [3, 2]]]
    assert torch.equal(flipped.image, got.image.flip(2))
    assert torch.equal(boxes, arguments[0]) and torch.equal(masks, arguments[1])
    assert arguments[2].tolist() == [200, 100, 1, 1, 17]


def test_without_an_image_boxes_and_size_change_alike():
    transform = Transform((600, 1000), MEANS, STDS)
    boxes = torch.tensor([[10.0, 20, 30, 40]])
    with_image = transform(image(640, 480), boxes, info(640, 480), None, random.Random(0))
    without = transform(None, boxes, info(640, 480), None, random.Random(0))
    assert without.image is None and without.masks is None
    assert torch.equal(without.boxes, with_image.boxes) and torch.equal(without.im_info, with_image.im_info)


def test_exactly_one_draw_whatever_the_probability():
    for probability in (0.0, 0.5, 1.0):
        rng, other = random.Random(3), random.Random(3)
        flipped = Transform((6, 8), MEANS, STDS, probability)(
            image(8, 6), torch.zeros(0, 4), info(8, 6), None, rng
        ).flipped
        assert flipped == (other.random() < probability)
        assert rng.random() == other.random()


def test_canvas_of_an_upright_image():
    assert pad_to_canvas(torch.ones(3, 4, 2), 3, 5).shape == (3, 5, 3)
    square = pad_to_canvas(torch.ones(3, 3, 3), 3, 5)
    assert square.shape == (3, 3, 5) and square.sum() == 27 and square[:, :, :3].all()


def test_an_image_that_disagrees_with_im_info_is_refused():
    transform = Transform((6, 8), MEANS, STDS)
    with pytest.raises(ValueError, match="8x6.*8x7"):
        transform(image(8, 6), torch.zeros(0, 4), info(8, 7), None, random.Random(0))
    with pytest.raises(ValueError, match="mode L"):
        transform(image(8, 6).convert("L"), torch.zeros(0, 4), info(8, 6), None, random.Random(0))


def test_pixels_are_blanked_with_the_borders_of_a_box():
    image = torch.ones(3, 8, 10)
    blank_pixels(image, torch.tensor([[1.9, 2.0, 3.9, 4.2], [9.0, 7.0, 9.0, 7.0]]))
    assert (image == 0).sum() == 3 * (3 * 3 + 1)
    assert not image[:, 2:5, 1:4].any() and not image[:, 7, 9].any()

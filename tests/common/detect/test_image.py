"""The detector's input."""

import numpy as np
import pytest
import torch
from PIL import Image

from common.detect.image import BGR_MEANS, input_scale, network_input, scaled_input
from common.errors import ImageError


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(600, 800, 1.0), (300, 400, 2.0), (300, 600, 1000 / 600), (2000, 1000, 0.5), (600, 1000, 1.0)],
)
def test_the_shorter_side_is_600_and_the_longer_at_most_1000(height, width, scale):
    assert input_scale(height, width) == scale
    assert input_scale(width, height) == scale


def test_channels_are_blue_green_red_less_their_means():
    pixels, scale = network_input(Image.new("RGB", (600, 600), (10, 20, 30)))
    assert (pixels.shape, scale) == ((1, 3, 600, 600), 1.0)
    assert (pixels[0, :, 0, 0] + torch.tensor(BGR_MEANS)).tolist() == pytest.approx([30, 20, 10], abs=1e-4)


def test_a_pixel_between_two_is_their_mean_and_edges_are_clamped():
    """Twice the size: output x has the source coordinate x / 2 - 1 / 4."""
    bgr = np.zeros((300, 400, 3), np.uint8)
    bgr[:, 1] = 100
    row = scaled_input(bgr).pixels[0, 0, 0, :5] + BGR_MEANS[0]
    assert row.tolist() == pytest.approx([0, 25, 75, 75, 25], abs=1e-4)


def test_coordinates_come_from_the_scale_itself():
    """Not from the ratio of the sizes: 251 pixels become 837, which is 836.67 rounded."""
    ramp = np.tile(np.arange(251, dtype=np.uint8)[None, :, None], (180, 1, 3))
    pixels, scale = scaled_input(ramp)
    assert pixels.shape[2:] == (600, 837)
    x = torch.arange(837)
    expected = ((x + 0.5) / scale - 0.5).clamp(0, 250) - BGR_MEANS[0]
    assert (pixels[0, 0, 0] - expected).abs().max() < 1e-3
    assert (((x + 0.5) * 251 / 837 - 0.5).clamp(0, 250) - BGR_MEANS[0] - expected).abs().max() > 1e-2


def test_an_image_that_is_too_narrow_is_an_error_with_its_size():
    with pytest.raises(ImageError, match="2000x3"):
        network_input(Image.new("RGB", (2000, 3)))

"""Region features of images."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor

from common.data.transforms import Transform
from common.errors import RegionError
from common.nn.fast_rcnn import FastRCNN
from common.predict.region_features import RegionFeatureExtractor

GRAY = Image.new("RGB", (64, 48), (128, 128, 128))
MEANS = (102.9801, 115.9465, 122.7717)


def transform(scales: tuple[int, int]) -> Transform:
    return Transform(scales, MEANS, (1.0, 1.0, 1.0))


def test_extractor_resizes_boxes_with_the_image_and_keeps_order() -> None:
    class Recording(torch.nn.Module):
        def region_features(self, images: Tensor, boxes: Tensor, mask: Tensor) -> Tensor:
            self.seen = images, boxes, mask
            return boxes[mask].repeat(1, 512)

    model = Recording()
    extract = RegionFeatureExtractor(model, transform((24, 100)), "cpu")  # type: ignore[arg-type]
    boxes = [torch.tensor([[0.0, 0, 63, 47], [10, 20, 30, 40]]), torch.tensor([[0.0, 0, 4, 8]])]
    features = extract([GRAY, Image.new("RGB", (24, 48))], boxes)
    pixels, scaled, mask = model.seen
    assert pixels.shape == (2, 3, 48, 32)  # 64 x 48 -> 32 x 24; 24 x 48 stays
    assert mask.tolist() == [[True, True], [True, False]]
    assert scaled[0].tolist() == [[0, 0, 31, 23], [5, 10, 15, 20]]  # 31.5 and 23.5 are clipped to the last pixel
    assert [len(rows) for rows in features] == [2, 1]
    assert features[1][0, :4].tolist() == [0, 0, 4, 8]
    torch.testing.assert_close(pixels[0, :, 0, 0], 128 - torch.tensor(MEANS))
    assert pixels[0, :, 24:].eq(0).all() and pixels[1, :, :, 24:].eq(0).all()


def test_features_do_not_depend_on_the_other_images_of_a_batch() -> None:
    torch.manual_seed(0)
    extract = RegionFeatureExtractor(FastRCNN(50), transform((48, 64)), "cpu")
    noise = Image.effect_noise((64, 48), 50).convert("RGB")
    boxes = torch.tensor([[2.0, 2, 30, 30]])
    alone = extract([noise], [boxes])[0]
    same_size = extract([GRAY, noise], [boxes, boxes])[1]
    torch.testing.assert_close(same_size, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_box_that_is_not_finite_never_reaches_the_network(value: float) -> None:
    """A transform clips infinity to the border and keeps NaN."""
    extract = RegionFeatureExtractor(FastRCNN(50), transform((48, 64)), "cpu")
    boxes = [torch.tensor([[2.0, 2, 30, 30]]), torch.tensor([[2.0, value, 30, 30]])]
    if value != value:
        with pytest.raises(RegionError, match=r"^image 2 of 2: box 1 of 1 is not finite: \[2.0, nan, 30.0, 30.0\]$"):
            extract([GRAY, GRAY], boxes)
    else:
        assert extract([GRAY, GRAY], boxes)[1].isfinite().all()


def test_masks_and_blanked_boxes_reach_the_network() -> None:
    class Recording(torch.nn.Module):
        def region_features(self, images: Tensor, boxes: Tensor, mask: Tensor, masks: Tensor) -> Tensor:
            self.seen = images, masks
            return boxes[mask].repeat(1, 512)

    model = Recording()
    extract = RegionFeatureExtractor(model, transform((48, 64)), "cpu")  # type: ignore[arg-type]
    boxes = torch.tensor([[0.0, 0, 63, 47], [10, 20, 30, 40]])
    extract([GRAY], [boxes], [torch.ones(2, 14, 14)], [boxes[1:]])
    images, masks = model.seen
    assert images[0, :, 20:41, 10:31].eq(0).all() and masks.shape == (1, 2, 14, 14)
    assert images.ne(0).float().mean() == 1 - 21 * 21 / (64 * 48)

"""Made-up samples of RefCOCO+."""

from __future__ import annotations

from tests.made_up import config, made_up_batch


def test_some_found_box_covers_the_referent_and_padding_is_marked():
    batch = made_up_batch("refcoco", config("refcoco"), samples=8)
    label = batch.targets["label"]
    assert (label[~batch.box_mask] == -1).all() and set(label[batch.box_mask].tolist()) == {0.0, 1.0}
    assert (label[:, 1:] == 1).any(1).all()


def test_images_are_padded_to_the_largest():
    batch = made_up_batch("refcoco", config("refcoco"), samples=3, image=(60, 100))
    assert batch.image.shape == (3, 3, 60, 100)
    width = int(batch.im_info[1, 0])
    assert width < 100 and not batch.image[1, :, :, width:].any()

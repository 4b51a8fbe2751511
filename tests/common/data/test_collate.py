import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from common.data.collate import clip_pad, collate, pad_stack
from common.data.sample import Sample
from common.errors import RegionError


def sample(index: int, boxes: int, tokens: int, **fields: Any) -> Sample:
    ids = torch.arange(1, tokens + 1)
    values = {
        "im_info": torch.full((4,), float(index)),
        "boxes": torch.full((boxes, 4), index + 1.0),
        "text_ids": ids,
        "segment_ids": torch.ones_like(ids),
    }
    return Sample(id=f"s{index}", **{**values, **fields})


def test_fields_are_padded_and_masked():
    a = sample(0, 1, 3, image=torch.ones(3, 2, 5), features=torch.ones(1, 6), targets={"label": torch.tensor(2)})
    b = sample(1, 2, 1, image=torch.ones(3, 4, 3), features=torch.ones(2, 6), targets={"label": torch.tensor(0)})
    batch = collate([a, b])
    assert batch.ids == ["s0", "s1"]
    assert batch.image is not None and batch.image.shape == (2, 3, 4, 5) and batch.image.sum() == 30 + 36
    assert batch.boxes.tolist() == [[[1] * 4, [0] * 4], [[2] * 4, [2] * 4]]
    assert batch.box_mask.tolist() == [[True, False], [True, True]]
    assert batch.text_ids.tolist() == [[1, 2, 3], [1, 0, 0]]
    assert batch.text_ids.dtype == torch.int64
    assert batch.text_mask.tolist() == [[True] * 3, [True, False, False]]
    assert batch.im_info.tolist() == [[0] * 4, [1] * 4]
    assert batch.features is not None and batch.features.shape == (2, 2, 6)
    assert batch.targets["label"].tolist() == [2, 0]
    assert batch.box_classes is None and batch.text_tags is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("pixels", [True, False])
def test_a_box_that_is_not_finite_is_named(value, pixels):
    """RoIAlign would end the process on a CPU and return anything on a GPU."""
    bad = sample(1, 3, 1, image=torch.ones(3, 4, 3)) if pixels else sample(1, 3, 1, features=torch.ones(3, 6))
    good = dataclasses.replace(bad, id="s0", boxes=torch.ones(3, 4))
    bad.boxes[1, 2] = value
    with pytest.raises(RegionError, match=rf"^sample 's1': box 2 of 3 is not finite: \[2.0, 2.0, {value}, 2.0\]$"):
        collate([good, bad])


def test_choices_may_differ_in_length():
    first = [torch.tensor([7, 8]), torch.tensor([9])]
    second = [torch.tensor([4]), torch.tensor([5, 6, 7])]
    samples = [sample(i, 1, 0, text_ids=t, segment_ids=t, text_tags=t) for i, t in enumerate((first, second))]
    batch = collate(samples)
    assert batch.text_ids.tolist() == [[[7, 8, 0], [9, 0, 0]], [[4, 0, 0], [5, 6, 7]]]
    assert batch.text_mask.sum(-1).tolist() == [[2, 1], [1, 3]]
    # The mask comes from the lengths: a token with id 0 is real.
    zeros = torch.zeros(2, 3, dtype=torch.int64)
    assert collate([sample(0, 1, 0, text_ids=zeros, segment_ids=zeros)]).text_mask.all()


def test_targets_have_their_own_padding():
    rows = [torch.tensor([1.0, 0.0]), torch.tensor([1.0])]
    samples = [
        sample(i, len(row), 1, targets={"label": row, "ops": row}, target_pads={"label": -1})
        for i, row in enumerate(rows)
    ]
    targets = collate(samples).targets
    assert targets["label"].tolist() == [[1, 0], [1, -1]]
    assert targets["ops"].tolist() == [[1, 0], [1, 0]]


def test_boxes_of_a_sample_without_any():
    batch = collate([sample(0, 0, 1), sample(1, 2, 1)])
    assert batch.box_mask.tolist() == [[False, False], [True, True]]


def test_samples_with_equal_image_keys_share_a_row():
    """Whatever tensors hold their pixels: equal keys stand for equal pixels."""
    wide, upright = torch.ones(3, 2, 5), torch.full((3, 4, 3), 2.0)
    shown = [("b", upright), ("a", wide), ("b", upright.clone()), ("a", wide.clone())]
    batch = collate([sample(i, 1, 1, image=image, image_key=(key, False)) for i, (key, image) in enumerate(shown)])
    assert batch.image.shape == (2, 3, 4, 5) and batch.image_row.tolist() == [0, 1, 0, 1]
    assert batch.image.amax((1, 2, 3)).tolist() == [2, 1]


def test_samples_without_an_image_key_share_nothing():
    image = torch.ones(3, 2, 2)
    batch = collate([sample(i, 1, 1, image=image) for i in range(2)])
    assert len(batch.image) == 2 and batch.image_row is None
    mixed = collate([sample(i, 1, 1, image=image, image_key=key) for i, key in enumerate((None, 0, 0))])
    assert len(mixed.image) == 2 and mixed.image_row.tolist() == [0, 1, 1]
    apart = collate([sample(i, 1, 1, image=image, image_key=key) for i, key in enumerate("ab")])
    assert len(apart.image) == 2 and apart.image_row is None


def test_an_image_key_of_two_images_is_refused():
    with pytest.raises(ValueError, match="'s1': the image_key 'a' stands for images of two sizes"):
        collate([sample(i, 1, 1, image=torch.ones(3, 2, 2 + i), image_key="a") for i in range(2)])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"image": torch.ones(3, 2, 2)}, "image.*'s1'"),
        ({"targets": {"label": torch.tensor(1)}}, "targets of sample 's1'"),
        ({"features": torch.ones(2, 6)}, "features.*'s1'"),
        ({"segment_ids": torch.zeros(2, dtype=torch.int64)}, "'s1': segment_ids of .2. tokens"),
    ],
)
def test_samples_that_disagree_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        collate([sample(0, 1, 1), sample(1, 1, 1, **bad)])


def test_rows_must_fit_the_boxes():
    with pytest.raises(ValueError, match="sample 's0': 3 rows of features for 2 boxes"):
        collate([sample(0, 2, 1, features=torch.ones(3, 6))])


def test_pad_stack_of_lists_arrays_and_nested_lists():
    assert pad_stack([[1, 2], []], -1).tolist() == [[1, 2], [-1, -1]]
    assert pad_stack([[], []], 0).dtype == torch.int64
    assert pad_stack([np.ones((1, 2), np.float32), np.ones((2, 1), np.float32)], 0).dtype == torch.float32
    assert pad_stack([[[1], [2, 3]], [[4, 5, 6], []]], 0).tolist() == [[[1, 0, 0], [2, 3, 0]], [[4, 5, 6], [0, 0, 0]]]
    assert pad_stack([torch.tensor(3), torch.tensor(4)], 0).tolist() == [3, 4]
    assert pad_stack([torch.tensor([True]), torch.tensor([True, True])], False).dtype == torch.bool
    with pytest.raises(ValueError, match="axes or dtype"):
        pad_stack([torch.ones(2), torch.ones(2, 2)], 0)


def test_clip_pad_cuts_and_fills():
    x = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert clip_pad(x, (3, 2), -2).tolist() == [[1, 2], [4, 5], [-2, -2]]
    assert clip_pad(x, (3, 2), -2).dtype == torch.int64

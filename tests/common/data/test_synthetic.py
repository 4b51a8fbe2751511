"""Made-up batches look like those of the datasets, and the modules take them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from common.config.table import task_names
from common.data import synthetic
from common.data.synthetic import FIRST_WORD
from common.task import load_task
from tests.made_up import FILES, config, made_up_batch

CLS, SEP, MASK = 101, 102, 103
SPECIALS = {"pretrain": 2, "vqa": 4, "vcr": 3, "refcoco": 2}


def tensors(batch: Any) -> dict[str, torch.Tensor]:
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)} | batch.targets
    return {name: value for name, value in fields.items() if isinstance(value, torch.Tensor)}


def test_every_task_is_tested():
    assert sorted(FILES) == task_names()


@pytest.mark.parametrize("task", FILES)
class TestEveryTask:
    def test_the_module_takes_it(self, task):
        cfg = config(task)
        model = load_task(task).build_model(cfg)
        output = model(made_up_batch(task, cfg, samples=2, words=6, boxes=3))
        assert output.loss.isfinite() and output.loss > 0
        output.loss.backward()

    def test_the_first_sample_has_the_sizes_asked_for_and_no_other_more(self, task):
        batch = made_up_batch(task, config(task), samples=6, words=12, boxes=9)
        specials = SPECIALS[task]
        words = batch.text_mask.sum(-1).view(6, -1) - specials
        boxes = batch.box_mask.sum(-1)
        assert len(batch) == 6 and batch.ids == list(range(6))
        assert words.max() == words[0, 0] == 12 and boxes.max() == boxes[0] == 9
        assert boxes.min() >= 5 and boxes.unique().numel() > 1 and words.unique().numel() > 1

    def test_text_is_framed_by_special_tokens_and_padded(self, task):
        batch = made_up_batch(task, config(task), samples=4)
        ids, mask = batch.text_ids.flatten(0, -2), batch.text_mask.flatten(0, -2)
        assert not ids[~mask].any() and (ids[mask] > 0).all()
        for row, length in zip(ids, mask.sum(1), strict=True):
            assert row[0] == CLS and row[length - 1] == SEP
            assert (row[1 : length - 4] != CLS).all()
        words = ids[(ids >= FIRST_WORD) | (ids == MASK)]
        assert words.numel() > 0.7 * mask.sum() and words.max() < 30522

    def test_boxes_lie_in_their_image_and_the_first_is_all_of_it(self, task):
        batch = made_up_batch(task, config(task), samples=5, image=(300, 500))
        for boxes, mask, (width, height, *ratios) in zip(
            batch.boxes, batch.box_mask, batch.im_info.tolist(), strict=True
        ):
            assert ratios == [1, 1] and height == 300 and 300 <= width <= 500
            assert boxes[0].tolist() == [0, 0, width - 1, height - 1]
            x1, y1, x2, y2 = boxes[mask].unbind(1)
            assert (x1 >= 0).all() and (x2 < width).all() and (x2 - x1 > 0.05 * width).all()
            assert (y1 >= 0).all() and (y2 < height).all() and (y2 - y1 > 0.05 * height).all()
            assert not boxes[~mask].any()

    def test_without_the_image_box_all_boxes_are_found_ones(self, task):
        section = "DATASET.0" if task == "pretrain" else "DATASET"
        batch = made_up_batch(task, config(task, {f"{section}.ADD_IMAGE_AS_A_BOX": False}), boxes=7)
        assert batch.boxes.shape == (2, 7, 4)
        width, height = batch.im_info[0, :2].tolist()
        assert ((batch.boxes[0, :, 2:] - batch.boxes[0, :, :2]) < torch.tensor([width, height]) * 0.7).all()

    def test_a_seed_says_it_all(self, task):
        one, same, other = (tensors(made_up_batch(task, config(task), seed=seed)) for seed in (1, 1, 2))
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not torch.equal(one["text_ids"], other["text_ids"])
        assert not torch.equal(one["boxes"], other["boxes"])

    def test_targets_can_be_left_out(self, task):
        cfg = config(task)
        with_targets, without = made_up_batch(task, cfg), made_up_batch(task, cfg, targets=False)
        assert ("label" in with_targets.targets) == (task != "pretrain") and without.targets == {}
        assert torch.equal(with_targets.text_ids, without.text_ids)
        assert [b.targets for b in without.auxiliary] == ([{}] if task == "pretrain" else [])

    def test_a_small_vocabulary_is_kept_to(self, task):
        batch = made_up_batch(task, config(task, {"NETWORK.VLBERT.vocab_size": 9}), samples=3)
        assert batch.text_ids.max() == 8 and batch.text_ids[batch.text_mask].min() == 1

    @pytest.mark.parametrize(("sizes", "named"), [({"samples": 0}, "0 samples"), ({"words": 1}, "1 words")])
    def test_sizes_that_make_no_sample(self, task, sizes, named):
        with pytest.raises(ValueError, match=f"{named}.*expected at least 1, 2 and 2"):
            made_up_batch(task, config(task), **sizes)

    def test_a_text_longer_than_the_positions(self, task):
        """With T tokens, regions have position T and END has T + 1."""
        specials = SPECIALS[task]
        cfg = config(task, {"NETWORK.VLBERT.max_position_embeddings": 20})
        assert made_up_batch(task, cfg, words=18 - specials).text_ids.shape[-1] == 18
        with pytest.raises(ValueError, match="need 21 positions, NETWORK.VLBERT.max_position_embeddings is 20"):
            made_up_batch(task, cfg, words=19 - specials)


def test_a_task_that_says_nothing_has_text_and_regions_and_no_targets():
    batch = synthetic.made_up_batch(synthetic.MadeUp(), config("vqa"), words=5, boxes=3)
    assert batch.text_ids.shape == (2, 7) and batch.boxes.shape == (2, 3, 4) and batch.targets == {}
    usual = synthetic.made_up_batch(synthetic.MadeUp(), config("vqa"), samples=1)
    assert usual.text_ids.shape == (1, 22) and usual.boxes.shape == (1, 36, 4)

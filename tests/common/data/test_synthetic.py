"""Made-up batches look like those of the datasets, and the modules take them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from common.config import load_config
from common.data.synthetic import CATEGORIES, CHOICES, FIRST_WORD, FORMS, made_up_batch
from common.task import load_task
from tests.paths import ROOT

FILES = {
    "pretrain": "pretrain/base_prec_4x16G_fp32.yaml",
    "vqa": "vqa/base_4x16G_fp32.yaml",
    "vcr": "vcr/base_q2a_4x16G_fp32.yaml",
    "refcoco": "refcoco/base_gt_boxes_4x16G.yaml",
}
TINY = {
    "SCALES": [32, 48],
    "NETWORK.IMAGE_NUM_LAYERS": 50,
    "NETWORK.IMAGE_FINAL_DIM": 8,
    "NETWORK.VLBERT.hidden_size": 8,
    "NETWORK.VLBERT.visual_size": 8,
    "NETWORK.VLBERT.num_hidden_layers": 1,
    "NETWORK.VLBERT.num_attention_heads": 2,
    "NETWORK.VLBERT.intermediate_size": 16,
}
CLS, SEP, MASK = 101, 102, 103
SPECIALS = {"pretrain": 2, "vqa": 4, "vcr": 3, "refcoco": 2}


def config(task: str, changes: dict[str, Any] | None = None) -> Any:
    return load_config(task, ROOT / "cfgs" / FILES[task], TINY | (changes or {}))


def tensors(batch: Any) -> dict[str, torch.Tensor]:
    fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)} | batch.targets
    return {name: value for name, value in fields.items() if isinstance(value, torch.Tensor)}


def test_every_form_is_tested():
    assert FORMS.keys() == FILES.keys()


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


def test_an_unknown_task():
    with pytest.raises(ValueError, match="task 'nlvr2', only for pretrain, vqa, vcr, refcoco"):
        made_up_batch("nlvr2", config("vqa"))


class TestVQA:
    def test_the_mask_stands_before_the_last_separator(self):
        batch = made_up_batch("vqa", config("vqa"), samples=3)
        for ids, segments, length in zip(batch.text_ids, batch.segment_ids, batch.text_mask.sum(1), strict=True):
            assert ids[length - 3 : length].tolist() == [SEP, MASK, SEP]
            assert segments[:length].tolist() == [0] * (length - 2) + [1, 1]

    def test_features_or_pixels_as_the_config_says(self):
        features = made_up_batch("vqa", config("vqa"))
        assert features.image is None and features.features.shape == (2, 100, 2048)
        pixels = made_up_batch("vqa", config("vqa", {"NETWORK.IMAGE_FEAT_PRECOMPUTED": False}))
        assert pixels.features is None and pixels.image.shape == (2, 3, 32, 48)

    def test_up_to_three_answers_have_a_score(self):
        labels = made_up_batch("vqa", config("vqa"), samples=3).targets["label"]
        assert labels.shape == (3, 3129)
        assert [sorted(row[row > 0].tolist()) for row in labels] == [pytest.approx([0.3, 0.6, 1.0])] * 3
        few = made_up_batch("vqa", config("vqa", {"DATASET.ANSWER_VOCAB_SIZE": 2})).targets["label"]
        assert few.shape == (2, 2) and few[0].sum() == pytest.approx(1.6)


class TestVCR:
    def test_images_lie_on_one_canvas(self):
        """im_info keeps the size without the padding (spec 20 §4)."""
        batch = made_up_batch("vcr", config("vcr"), samples=6, image=(60, 120))
        assert batch.image.shape == (6, 3, 60, 120)
        widths = batch.im_info[:, 0].int().tolist()
        assert widths[0] == 120 and min(widths) < 120
        for image, width in zip(batch.image, widths, strict=True):
            assert not image[:, :, width:].any() and image[:, :, :width].all()

    def test_pixels_are_normalised(self):
        """Means about 103 to 123 of 255, so half of 255 is slightly positive."""
        image = made_up_batch("vcr", config("vcr"), samples=1, image=(60, 120)).image
        assert image.min() > -124 and image.max() < 153 and 0 < image.mean() < 30

    def test_choices_share_the_query(self):
        batch = made_up_batch("vcr", config("vcr"), samples=2, words=12)
        assert batch.text_ids.shape == (2, CHOICES, 15)
        ids, tags = batch.text_ids[0], batch.text_tags[0]
        assert (ids[:, :8] == ids[0, :8]).all() and (tags[:, :8] == tags[0, :8]).all()
        assert ids[0, 7] == SEP and not torch.equal(ids[0], ids[1])
        assert batch.segment_ids[0, 0].tolist() == [0] * 8 + [1] * 7

    def test_some_words_name_a_detection(self):
        batch = made_up_batch("vcr", config("vcr"), samples=8, boxes=5)
        tags, boxes = batch.text_tags, batch.box_mask.sum(1)[:, None, None]
        assert not tags[batch.text_ids < FIRST_WORD].any() and (tags < boxes).all() and (tags >= 0).all()
        assert 0.05 < (tags > 0).sum() / batch.text_mask.sum() < 0.4

    def test_boxes_have_a_category_and_a_mask(self):
        batch = made_up_batch("vcr", config("vcr"), samples=4, boxes=30)
        found = batch.box_mask[:, 1:]
        classes, masks = batch.box_classes[:, 1:][found], batch.box_masks[:, 1:][found]
        assert not batch.box_classes[:, 0].any() and (batch.box_masks[:, 0] == 1).all()
        assert classes.min() >= 1 and classes.max() <= CATEGORIES and classes.unique().numel() > 20
        assert masks.shape[1:] == (14, 14) and set(masks.unique().tolist()) == {0.0, 1.0}
        assert masks.mean((1, 2)).min() > 0.1 and masks.mean((1, 2)).max() < 0.9
        assert not batch.box_masks[~batch.box_mask].any()

    def test_labels_are_choices(self):
        labels = made_up_batch("vcr", config("vcr"), samples=30, words=4, boxes=2).targets["label"]
        assert labels.dtype == torch.int64 and set(labels.tolist()) == set(range(CHOICES))

    def test_rationales_are_longer_than_answers(self):
        answers = made_up_batch("vcr", config("vcr"), samples=1)
        rationales = made_up_batch("vcr", config("vcr", {"DATASET.TASK": "QA2R"}), samples=1)
        assert rationales.text_ids.shape[-1] > answers.text_ids.shape[-1]


class TestRefCOCO:
    def test_some_found_box_covers_the_referent_and_padding_is_marked(self):
        batch = made_up_batch("refcoco", config("refcoco"), samples=8)
        label = batch.targets["label"]
        assert (label[~batch.box_mask] == -1).all() and set(label[batch.box_mask].tolist()) == {0.0, 1.0}
        assert (label[:, 1:] == 1).any(1).all()

    def test_images_are_padded_to_the_largest(self):
        batch = made_up_batch("refcoco", config("refcoco"), samples=3, image=(60, 100))
        assert batch.image.shape == (3, 3, 60, 100)
        width = int(batch.im_info[1, 0])
        assert width < 100 and not batch.image[1, :, :, width:].any()


class TestPretrain:
    def test_hidden_words_and_regions_have_targets(self):
        batch = made_up_batch("pretrain", config("pretrain"), samples=4)
        for part in (batch, *batch.auxiliary):
            hidden = part.targets["mlm_labels"] != -1
            assert torch.equal(hidden, part.text_ids == MASK) and hidden.any(1).all()
            assert 0.05 < hidden.sum() / part.text_mask.sum() < 0.35
        wanted, labels = batch.targets["mvrc_mask"], batch.targets["mvrc_labels"]
        assert not wanted[:, 0].any() and wanted.any(1).all() and labels.shape[1:] == (wanted.sum(1).max(), 1601)
        assert [int((row.sum(-1) > 0.9).sum()) for row in labels] == wanted.sum(1).tolist()

    def test_text_and_regions_fill_the_length_of_the_config(self):
        batch = made_up_batch("pretrain", config("pretrain"), samples=3)
        assert batch.text_ids.shape[1] + batch.boxes.shape[1] == 64
        (text,) = batch.auxiliary
        assert text.text_ids.shape == (3, 64) and text.text_mask.all() and text.boxes.shape == (3, 0, 4)

    def test_a_single_data_set_has_no_text_beside_it(self):
        path = ROOT / "cfgs/pretrain/base_prec_withouttextonly_4x16G_fp32.yaml"
        assert made_up_batch("pretrain", load_config("pretrain", path, TINY)).auxiliary == ()

"""The VQA module: where it looks, what it loses, and which configs it refuses (original 9.13 to 9.18)."""

from __future__ import annotations

import dataclasses
import logging
import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.config import load_config
from common.data.collate import collate
from common.data.sample import Batch
from common.errors import ConfigError
from data.scenes.questions import ANSWERS
from vqa.dataset import build_dataset
from vqa.module import VLBertForVQA, build_model

END_TO_END = ["NETWORK.IMAGE_FEAT_PRECOMPUTED=false"]


class Regions(nn.Module):
    """A region encoder whose vector of box r is (r + 1, r + 1)."""

    def forward(self, image: Any, boxes: Tensor, *args: Any, **kwargs: Any) -> Any:
        count = torch.arange(1.0, boxes.shape[1] + 1)
        return SimpleNamespace(reps=count[None, :, None].expand(len(boxes), -1, 2))


class Core(nn.Module):
    """A VL-BERT that keeps its arguments and whose state of word t is (t, t)."""

    sizes = SimpleNamespace(hidden_size=2)

    def forward(self, *args: Tensor, sequences: Any = None) -> Any:
        self.ids, self.segments, self.text_visual, self.text_mask, self.regions, self.linguistic, self.box_mask = args
        count = torch.arange(float(self.ids.shape[1]))
        return SimpleNamespace(text=count[None, :, None].expand(len(self.ids), -1, 2))


def batch(labels: Tensor | None = None) -> Batch:
    """Questions of 3 and 5 pieces, with 3 and 2 boxes."""
    lengths, boxes = torch.tensor([7, 9]), torch.tensor([3, 2])
    ids = torch.tensor([[101, 104, 105, 106, 102, 103, 102, 0, 0], [101, 104, 110, 111, 112, 113, 102, 103, 102]])
    return Batch(
        ids=[1, 2],
        im_info=torch.tensor([[800.0, 600, 1, 1]] * 2),
        boxes=torch.zeros(2, 3, 4),
        box_mask=torch.arange(3) < boxes[:, None],
        text_ids=ids,
        segment_ids=torch.zeros_like(ids),
        text_mask=torch.arange(9) < lengths[:, None],
        targets={} if labels is None else {"label": labels},
    )


class Constant(nn.Module):
    """A classifier that gives the same logits whatever it sees."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, states: Tensor) -> Tensor:
        return self.logits


class TestForward:
    def test_the_answer_is_read_at_the_mask(self):
        """Prediction positions 5 and 7, of different questions in one batch."""
        module = VLBertForVQA(Regions(), Core(), nn.Identity())
        assert module(batch()).predictions["label_logits"].tolist() == [[5, 5], [7, 7]]

    def test_every_word_carries_the_first_box(self):
        """Original 9.14: whichever that is."""
        module = VLBertForVQA(Regions(), Core(), nn.Identity())
        module(batch())
        assert module.vlbert.text_visual.shape == (2, 9, 2)
        assert (module.vlbert.text_visual == 1).all()
        assert module.vlbert.regions[0].tolist() == [[1, 1], [2, 2], [3, 3]]

    def test_without_grounding_words_carry_zeros_and_regions_stay(self):
        module = VLBertForVQA(Regions(), Core(), nn.Identity(), no_grounding=True)
        module(batch())
        assert (module.vlbert.text_visual == 0).all() and (module.vlbert.regions[:, 2] == 3).all()

    def test_all_boxes_share_one_word(self):
        module = VLBertForVQA(Regions(), Core(), nn.Identity())
        module(batch())
        word = module.object_linguistic_embeddings.weight
        assert word.shape == (1, 2) and torch.equal(module.vlbert.linguistic, word.expand(2, 3, 2))

    def test_masks_are_bool(self):
        """17.18"""
        module = VLBertForVQA(Regions(), Core(), nn.Identity())
        module(batch())
        assert module.vlbert.text_mask.dtype == module.vlbert.box_mask.dtype == torch.bool


class TestLoss:
    def test_sum_over_answers_and_mean_over_the_batch(self):
        """Original 9.16: for p = 1/2 each answer costs log 2; logit log 3 is p = 3/4: -0.3 log 0.75 - 0.7 log 0.25."""
        logits = torch.zeros(2, 5)
        logits[1, 4] = math.log(3)
        labels = torch.zeros(2, 5)
        labels[0, 2], labels[1, 4] = 1.0, 0.3
        output = VLBertForVQA(Regions(), Core(), Constant(logits))(batch(labels))
        first = 5 * math.log(2)
        second = 4 * math.log(2) - 0.3 * math.log(0.75) - 0.7 * math.log(0.25)
        assert output.loss.item() == pytest.approx((first + second) / 2)
        assert output.losses["ans_loss"] is output.loss

    def test_no_labels_no_loss(self):
        output = VLBertForVQA(Regions(), Core(), nn.Identity())(batch())
        assert output.loss is None and output.losses == {}


class TestConfig:
    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("NETWORK.BLIND=true", "NETWORK.BLIND = True: expected False"),  # 17.15
            ("NETWORK.VLBERT.object_word_embed_mode=1", "object_word_embed_mode = 1: expected 2"),  # 17.15
            ("NETWORK.VLBERT.object_word_embed_mode=3", "object_word_embed_mode = 3: expected 2"),
            ("NETWORK.IMAGE_SEMANTIC=true", "NETWORK.IMAGE_SEMANTIC = True: expected False"),  # 17.16
            ("NETWORK.OUTPUT_CONV5=true", "NETWORK.OUTPUT_CONV5 = True: expected False"),
            ("NETWORK.IMAGE_NUM_LAYERS=18", "IMAGE_NUM_LAYERS = 18: expected one of 50, 101, 152"),
            ("NETWORK.VLBERT.obj_pos_id_relative=false", "obj_pos_id_relative = False: expected True"),
            ("NETWORK.CLASSIFIER_TYPE=3fc", "CLASSIFIER_TYPE = '3fc': expected one of '2fc', '1fc', 'mlm'"),
            ("DATASET.BOXES=50", "DATASET.BOXES = '50': expected one of '36', '10-100ada'"),  # original 9.4
            ("DATASET.CACHE_MODE=true", "DATASET.CACHE_MODE = True"),  # original 9.6
        ],
    )
    def test_what_cannot_work_is_refused(self, cfg_path, override, message):
        with pytest.raises(ConfigError, match="tiny.yaml with overrides: .*") as error:
            load_config("vqa", cfg_path, [override])
        assert message in str(error.value)

    def test_the_regulariser_is_refused_with_images(self, cfg_path):
        """17.16"""
        with pytest.raises(ConfigError, match="ENABLE_CNN_REG_LOSS = True: expected False"):
            load_config("vqa", cfg_path, [*END_TO_END, "NETWORK.ENABLE_CNN_REG_LOSS=true"])

    def test_the_regulariser_is_ignored_aloud_with_features(self, cfg_path, caplog):
        """17.16: the published default."""
        with caplog.at_level(logging.WARNING):
            cfg = load_config("vqa", cfg_path, ["NETWORK.ENABLE_CNN_REG_LOSS=true"])
        assert "ENABLE_CNN_REG_LOSS has no effect" in caplog.text
        assert not any("regularization" in name for name in build_model(cfg).state_dict())

    def test_a_pretrained_2fc_classifier_must_be_as_wide_as_the_words(self, cfg_path):
        """17.14"""
        head = ["NETWORK.CLASSIFIER_TYPE=2fc", "NETWORK.CLASSIFIER_PRETRAINED=true"]
        with pytest.raises(ConfigError, match="CLASSIFIER_HIDDEN_SIZE = 20: expected .*hidden_size, which is 16"):
            load_config("vqa", cfg_path, [*head, "NETWORK.CLASSIFIER_HIDDEN_SIZE=20"])
        load_config("vqa", cfg_path, [*head, "NETWORK.CLASSIFIER_HIDDEN_SIZE=16"])


class TestClassifier:
    H, V = 16, len(ANSWERS) + 1

    def shapes(self, cfg_path: Any, kind: str) -> dict[str, tuple[int, ...]]:
        cfg = load_config("vqa", cfg_path, [f"NETWORK.CLASSIFIER_TYPE={kind}", "NETWORK.CLASSIFIER_HIDDEN_SIZE=20"])
        return {name: tuple(p.shape) for name, p in build_model(cfg).final_mlp.named_parameters()}

    def test_2fc(self, cfg_path):
        expected = {"1.weight": (20, self.H), "1.bias": (20,), "4.weight": (self.V, 20), "4.bias": (self.V,)}
        assert self.shapes(cfg_path, "2fc") == expected

    def test_1fc(self, cfg_path):
        assert self.shapes(cfg_path, "1fc") == {"1.weight": (self.V, self.H), "1.bias": (self.V,)}

    def test_mlm(self, cfg_path):
        transform = {"0.dense.weight": (self.H, self.H), "0.dense.bias": (self.H,)}
        norm = {"0.LayerNorm.weight": (self.H,), "0.LayerNorm.bias": (self.H,)}
        assert self.shapes(cfg_path, "mlm") == {
            **transform,
            **norm,
            "2.weight": (self.V, self.H),
            "2.bias": (self.V,),
        }


class TestWholeModel:
    @pytest.fixture
    def cfg(self, cfg_path):
        return load_config("vqa", cfg_path, ["NETWORK.VLBERT.max_position_embeddings=20"])

    def test_train_and_eval_return_the_module(self, cfg):
        """17.17"""
        model = build_model(cfg)
        assert model.train() is model and model.training
        assert model.eval() is model and not model.training

    @pytest.mark.parametrize("text", ["", "yes " * 600], ids=["empty", "600 words"])
    def test_a_question_of_any_length_gets_an_answer(self, cfg, text):
        """17.12 and 17.32: together with others in a batch."""
        dataset = build_dataset(cfg, "train")
        dataset.questions[0] = dataclasses.replace(dataset.questions[0], text=text)
        odd, normal = (dataset.sample(i, random.Random(0)) for i in range(2))
        model = build_model(cfg).eval()
        with torch.no_grad():
            logits = model(collate([odd, normal])).predictions["label_logits"]
            alone = model(collate([odd])).predictions["label_logits"]
        assert logits.shape == (2, len(ANSWERS) + 1) and logits.isfinite().all()
        torch.testing.assert_close(logits[:1], alone, atol=1e-5, rtol=1e-4)

    def test_the_image_and_the_question_matter(self, cfg):
        dataset = build_dataset(cfg, "train")
        whole = collate([dataset.sample(0, random.Random(0))])
        model = build_model(cfg).eval()
        with torch.no_grad():
            before = model(whole).predictions["label_logits"]
            whole.features[:, 1:] += 1.0
            seen = model(whole).predictions["label_logits"]
            whole.text_ids[0, 1] += 1
            read = model(whole).predictions["label_logits"]
        assert not torch.equal(before, seen) and not torch.equal(seen, read)

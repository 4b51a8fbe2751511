"""Original 8.12 to 8.16 (module) and original 8.18 (how it starts from a pretraining checkpoint)."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.config import load_config, replace
from common.data.collate import collate
from common.data.sample import Batch, Sample
from common.errors import CheckpointError, ConfigError
from common.nn.fast_rcnn import FEATURE_DIM, FastRCNN, RegionOutput
from common.nn.heads import build_classifier
from common.nn.vl_bert import VisualLinguisticBert, VisualLinguisticBertForPretraining, VLBertSizes
from common.weights.foreign import load_partial
from vcr.module import VLBertForVCR, build_model
from vcr.pretrained import RELATIONSHIP, TOKEN_TYPES, adapt_pretrained

HIDDEN, CHOICES = 8, 4
RULES = [
    "vlbert.mvrc_head.transform->cnn_loss_reg.0",
    "module.vlbert.mvrc_head.transform->module.cnn_loss_reg.0",
    "module.vlbert->module.vlbert._module",
    "vlbert->vlbert._module",
]


def sizes(**changes) -> VLBertSizes:
    values = {
        "hidden_size": HIDDEN,
        "visual_size": HIDDEN,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 30,
        "visual_scale_object_init": 1.0,
        "visual_scale_text_init": 1.0,
        "with_pooler": True,
    }
    return VLBertSizes(**values | changes)


class Regions(torch.nn.Module):
    """Stands for the image tower: a region embedding that is a function of the box, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(
        self,
        images,
        boxes: Tensor,
        box_mask: Tensor,
        im_info,
        features=None,
        classes=None,
        box_masks=None,
        image_row=None,
        box_places=None,
    ) -> RegionOutput:
        self.calls += 1
        reps = torch.cat([boxes, boxes.flip(-1)], dim=-1) / 50 * box_mask[..., None]
        return RegionOutput(reps)


def module(extractor="stub", **changes) -> VLBertForVCR:
    torch.manual_seed(0)
    extractor = Regions() if extractor == "stub" else extractor
    classifier = build_classifier("1fc", HIDDEN, 1, 16, 0.0)
    vlbert = VisualLinguisticBert(sizes(**changes.pop("sizes", {})))
    return VLBertForVCR(extractor, vlbert, classifier, **changes).eval()


def sample(number: int, boxes: int, image: bool = False) -> Sample:
    """Four choices of different lengths; tags are rows of the boxes."""
    g = torch.Generator().manual_seed(number)
    start = torch.rand(boxes, 2, generator=g) * 10
    texts = [torch.randint(5, 30, (4 + (number + c) % 3,), generator=g) for c in range(CHOICES)]
    return Sample(
        id=number,
        im_info=torch.tensor([32.0, 32.0, 1.0, 1.0]),
        boxes=torch.cat([start, start + 15], dim=1),
        box_classes=torch.randint(0, 81, (boxes,), generator=g),
        box_masks=torch.ones(boxes, 14, 14),
        image=torch.randn(3, 32, 32, generator=g) if image else None,
        text_ids=texts,
        segment_ids=[(torch.arange(len(t)) > 1).long() for t in texts],
        text_tags=[torch.randint(0, boxes, (len(t),), generator=g) for t in texts],
        targets={"label": torch.tensor(number % CHOICES)},
    )


def batch(**changes) -> Batch:
    return collate([sample(1, 3, **changes), sample(2, 2, **changes)])


def logits_of(model, given: Batch) -> Tensor:
    with torch.no_grad():
        return model(given).predictions["label_logits"]


class TestChoices:
    def test_the_image_tower_runs_once_per_image(self):
        """The real tower: two images of four choices are one call with two images, not eight."""
        torch.manual_seed(0)
        model = module(FastRCNN(50, final_dim=HIDDEN))
        seen = []
        model.image_feature_extractor.backbone.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
        assert logits_of(model, batch(image=True)).shape == (2, CHOICES)
        assert seen == [2]

    def test_each_choice_is_scored_as_if_it_were_alone(self):
        model, given = module(), batch()
        together = logits_of(model, given)
        assert model.image_feature_extractor.calls == 1
        assert together.std() > 1e-3
        for c in range(CHOICES):
            one = Batch(
                **vars(given)
                | {k: getattr(given, k)[:, c : c + 1] for k in ("text_ids", "segment_ids", "text_mask", "text_tags")}
                | {"targets": {}}
            )
            torch.testing.assert_close(logits_of(model, one)[:, 0], together[:, c], atol=1e-6, rtol=1e-5)

    def test_words_carry_the_region_of_their_tag(self):
        model, given = module(), batch()
        seen = []
        model.vlbert._module.register_forward_pre_hook(lambda m, args: seen.append(args))
        logits_of(model, given)
        text_visual = seen[0][2].unflatten(0, (2, CHOICES))
        regions = model.image_feature_extractor(None, given.boxes, given.box_mask, None).reps
        for b in range(2):
            for c in range(CHOICES):
                for t in range(given.text_ids.shape[2]):
                    assert torch.equal(text_visual[b, c, t], regions[b, given.text_tags[b, c, t]])


class TestSwitches:
    def test_no_grounding_shows_every_word_the_first_region(self):
        model, given = module(no_grounding=True), batch()
        want = logits_of(model, given)
        given.text_tags = torch.full_like(given.text_tags, 1)
        assert torch.equal(logits_of(model, given), want)
        model.no_grounding = False
        assert not torch.allclose(logits_of(model, given), want, atol=1e-4)

    def test_no_object_attention_keeps_regions_out_of_the_sequence(self):
        model, given = (
            module(no_object_attention=True, object_word_embed_mode=1, sizes={"initializer_range": 0.5}),
            batch(),
        )
        want = logits_of(model, given)
        given.box_classes = (given.box_classes + 40) % 81  # only the region elements carry classes
        assert torch.equal(logits_of(model, given), want)
        model.no_object_attention = False
        assert not torch.allclose(logits_of(model, given), want, atol=1e-4)

    def test_blind_sees_no_image(self):
        model = module(None, sizes={"visual_ln": False})
        given = batch()
        want = logits_of(model, given)
        given.boxes, given.box_classes = given.boxes + 5, given.box_classes * 0
        assert torch.equal(logits_of(model, given), want)
        assert not model.vlbert._module.visual_scale_text.requires_grad
        assert not [k for k in model.state_dict() if k.startswith(("image_", "object_", "cnn_"))]

    @pytest.mark.parametrize(("mode", "rows"), [(1, 81), (2, 1), (3, None)])
    def test_words_of_regions(self, mode, rows):
        """Original 8.13: the category's word, one for all, or the mean of the row's words without [CLS] and [SEP]."""
        model, given = module(object_word_embed_mode=mode), batch()
        given.text_ids[..., 0] = 5
        given.text_ids[0, 3, 2] = 5  # a [CLS] inside counts as one too
        given.text_ids.scatter_(2, given.text_mask.sum(-1, keepdim=True) - 1, 6)
        words = model._object_words(given)
        assert words.shape == (2, CHOICES, 3, HIDDEN)
        if rows is None:
            table = model.vlbert._module.word_embeddings.weight
            for b, c in ((1, 2), (0, 3)):
                ids = [i for i in given.text_ids[b, c][given.text_mask[b, c]].tolist() if i not in (5, 6)]
                torch.testing.assert_close(words[b, c, 0], table[ids].mean(0))
            assert not hasattr(model, "object_linguistic_embeddings")
        else:
            table = model.object_linguistic_embeddings.weight
            assert len(table) == rows
            row = int(given.box_classes[0, 2]) if mode == 1 else 0
            assert torch.equal(words[0, 3, 2], table[row])


class TestLosses:
    def test_softmax_over_choices(self):
        out = module()(batch())
        want = F.cross_entropy(out.predictions["label_logits"], torch.tensor([1, 2]))
        torch.testing.assert_close(out.loss, want)
        assert "positive_fraction" not in out.predictions

    def test_sigmoid_with_a_weight_for_the_right_choice(self):
        """Original 8.14: BCE with weight w on positives, times (w + 1) / (2 w)."""
        out = module(positive_weight=3.0)(batch())
        target = F.one_hot(torch.tensor([1, 2]), 4).float()
        p = out.predictions["label_logits"].sigmoid()
        terms = -3 * target * p.log() - (1 - target) * (1 - p).log()
        torch.testing.assert_close(out.loss, terms.mean() * 4 / 6)
        assert out.predictions["positive_fraction"].item() == 0.25

    def test_class_loss_on_region_states(self):
        model = module(class_loss_top=True, class_loss_weight=0.5, answer_loss_weight=2.0)
        out = model(batch())
        total = 2 * out.losses["ans_loss"] + 0.5 * out.losses["cnn_regularization_loss"]
        torch.testing.assert_close(out.loss, total)
        with torch.no_grad():  # a head that says nothing costs log 81
            model.cnn_loss_reg[2].weight.zero_()
        torch.testing.assert_close(model(batch()).losses["cnn_regularization_loss"], torch.tensor(81.0).log())

    def test_without_label_there_is_no_loss(self):
        given = batch()
        given.targets = {}
        assert module(class_loss_top=True)(given).loss is None


class TestExclusiveSwitches:
    @pytest.fixture
    @staticmethod
    def cfg():
        small = {f"NETWORK.VLBERT.{k}": v for k, v in vars(sizes()).items() if k in ("hidden_size", "vocab_size")}
        small |= {"NETWORK.VLBERT.visual_size": HIDDEN, "NETWORK.VLBERT.num_attention_heads": 2}
        small |= {"NETWORK.IMAGE_FINAL_DIM": HIDDEN, "NETWORK.VLBERT.num_hidden_layers": 1}
        small |= {"NETWORK.VLBERT.with_pooler": True, "NETWORK.IMAGE_NUM_LAYERS": 50, "DATASET.MASK_SIZE": 7}
        return load_config("vcr", overrides=small)

    @pytest.mark.parametrize("visual_ln", [False, True])
    def test_a_blind_config_builds_and_trains_without_class_loss(self, cfg, visual_ln, caplog):
        """Original 8.16."""
        cfg = replace(cfg, {"NETWORK.BLIND": True, "NETWORK.VLBERT.visual_ln": visual_ln})
        out = build_model(cfg)(batch())
        assert list(out.losses) == ["ans_loss"] and out.loss.isfinite()
        assert "ENABLE_CNN_REG_LOSS has no effect" in caplog.text

    def test_without_regions_in_the_sequence_there_is_no_loss_on_their_states(self, cfg):
        """Original 8.16: the original's is NaN."""
        features = {"NETWORK.IMAGE_FEAT_PRECOMPUTED": True, "NETWORK.NO_OBJ_ATTENTION": True}
        model = build_model(replace(cfg, features | {"NETWORK.CNN_LOSS_TOP": True}))
        given = batch()
        given.features = torch.ones(*given.box_mask.shape, FEATURE_DIM)
        assert list(model(given).losses) == ["ans_loss"]

    def test_precomputed_features_reach_the_regions(self, cfg):
        features = {"NETWORK.IMAGE_FEAT_PRECOMPUTED": True, "NETWORK.CNN_LOSS_TOP": True}
        model = build_model(replace(cfg, features)).eval()
        given = batch()
        given.features = torch.ones(*given.box_mask.shape, FEATURE_DIM)
        out = model._regions(given)[0]
        given.features = given.features * 2
        assert not torch.allclose(model._regions(given)[0], out)
        assert list(model(given).losses) == ["ans_loss", "cnn_regularization_loss"]

    @pytest.mark.parametrize(
        ("key", "value", "text"),
        [
            ("DATASET.MASK_SIZE", 14, "MASK_SIZE 14: expected 7"),
            ("NETWORK.IMAGE_C5_DILATED", True, "MASK_SIZE 7: expected 14"),
            ("NETWORK.IMAGE_FEAT_PRECOMPUTED", True, "CNN_LOSS_TOP false trains the CNN"),
            ("NETWORK.VLBERT.with_pooler", False, "with_pooler false"),
            ("NETWORK.CLASSIFIER_TYPE", "mlm", "CLASSIFIER_TYPE 'mlm'"),
        ],
    )
    def test_combinations_that_cannot_work(self, cfg, key, value, text):
        with pytest.raises(ConfigError, match=text):
            build_model(replace(cfg, {key: value}))


class TestFromPretraining:
    @staticmethod
    def adapt(relationship: bool = True, segment_b: bool = False, classifier: str = "1fc"):
        network = SimpleNamespace(
            LOAD_REL_HEAD=relationship, PARTIAL_PRETRAIN_SEGMB_INIT=segment_b, CLASSIFIER_TYPE=classifier
        )
        return adapt_pretrained(SimpleNamespace(NETWORK=network))

    @staticmethod
    def checkpoint(wrapper: str, half: bool = False) -> dict[str, Tensor]:
        torch.manual_seed(1)
        model = VisualLinguisticBertForPretraining(sizes(), num_region_classes=5)
        state = {f"{wrapper}vlbert.{k}": v.detach().clone() for k, v in model.state_dict().items()}
        return {k: v.half() if half else v for k, v in state.items()}

    @pytest.mark.parametrize("wrapper", ["", "module."])
    @pytest.mark.parametrize("half", [False, True])
    def test_the_classifier_is_the_difference_of_the_relationship_logits(self, wrapper, half):
        """Original 8.18, also for files saved without wrapper (original 3.30)."""
        model = module(class_loss_top=True)
        state = self.checkpoint(wrapper, half)
        state[f"{wrapper}vlbert.relationsip_head.caption_image_relationship.bias"] += torch.tensor([0.25, 1.5])
        report = load_partial(model, state, RULES, "x", self.adapt())
        head = f"{wrapper}vlbert.relationsip_head.caption_image_relationship"
        weight = state[f"{head}.weight"].float()
        assert torch.equal(model.final_mlp[1].weight[0], weight[1] - weight[0])
        assert model.final_mlp[1].bias.item() == pytest.approx(1.25)
        dense = state[f"{wrapper}vlbert.mvrc_head.transform.dense.weight"].float()
        assert torch.equal(model.cnn_loss_reg[0].dense.weight, dense)  # by the prefix rules
        assert {k for k in report.kept if "cnn_loss_reg" in k} == {"cnn_loss_reg.2.weight", "cnn_loss_reg.2.bias"}

    def test_a_classifier_of_two_layers_has_no_place_for_it(self):
        """Original 8.18."""
        state = {f"{RELATIONSHIP}.weight": torch.zeros(2, 8), f"{RELATIONSHIP}.bias": torch.zeros(2)}
        assert "final_mlp.1.weight" in self.adapt()(state)
        assert "final_mlp.1.weight" not in self.adapt(classifier="2fc")(state)

    def test_it_can_be_switched_off_or_be_absent(self):
        model = module()
        before = model.final_mlp[1].weight.clone()
        load_partial(model, self.checkpoint("module."), RULES, "x", self.adapt(relationship=False))
        assert torch.equal(model.final_mlp[1].weight, before)
        state = {k: v for k, v in self.checkpoint("module.").items() if "relationsip" not in k}
        load_partial(model, state, RULES, "x", self.adapt())
        assert torch.equal(model.final_mlp[1].weight, before)

    @pytest.mark.parametrize("wrapper", ["", "module."])
    def test_the_second_segment_starts_like_the_first(self, wrapper):
        model = module()
        state = self.checkpoint(wrapper, half=True)
        types = state[f"{wrapper}vlbert.token_type_embeddings.weight"].float()
        before = {k: v.clone() for k, v in state.items()}
        load_partial(model, state, RULES, "x", self.adapt(segment_b=True))
        assert torch.equal(model.vlbert._module.token_type_embeddings.weight, types[[0, 0, 2]])
        assert all(torch.equal(state[k], before[k]) for k in state)  # the caller's tensors stay
        load_partial(model, state, RULES, "x", self.adapt(segment_b=False))
        assert torch.equal(model.vlbert._module.token_type_embeddings.weight, types)

    def test_a_checkpoint_without_segments_is_an_error(self):
        with pytest.raises(CheckpointError, match=f"PARTIAL_PRETRAIN_SEGMB_INIT.* no {TOKEN_TYPES}"):
            self.adapt(segment_b=True)(
                {f"{RELATIONSHIP}.weight": torch.zeros(2, 8), f"{RELATIONSHIP}.bias": torch.zeros(2)}
            )


def test_own_keys():
    """Original 2.18."""
    state = module(class_loss_top=True).state_dict()
    own = {k: tuple(v.shape) for k, v in state.items() if not k.startswith("vlbert._module.")}
    assert own == {
        "object_linguistic_embeddings.weight": (81, HIDDEN),
        "cnn_loss_reg.0.dense.weight": (HIDDEN, HIDDEN),
        "cnn_loss_reg.0.dense.bias": (HIDDEN,),
        "cnn_loss_reg.2.weight": (81, HIDDEN),
        "cnn_loss_reg.2.bias": (81,),
        "final_mlp.1.weight": (1, HIDDEN),
        "final_mlp.1.bias": (1,),
    }

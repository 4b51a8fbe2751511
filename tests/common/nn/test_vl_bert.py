"""Original 2.4 to 2.20: packing, outputs, initial weights, heads and keys."""

import pytest
import torch
from torch import Tensor, nn

from common.nn.bert import EncoderOutput
from common.nn.vl_bert import (
    NUM_SPECIAL_WORDS,
    VisualLinguisticBert,
    VisualLinguisticBertForPretraining,
    VLBertSizes,
)

SMALL = {
    "hidden_size": 8,
    "visual_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 40,
    "max_position_embeddings": 16,
}

# What each channel of a readable embedding says.
POSITION, TYPE, WORD, REGION, END, TEXT_VISUAL, REGION_VISUAL = range(7)


def small(**changes) -> VLBertSizes:
    return VLBertSizes(**SMALL | changes)


def readable(**changes) -> VisualLinguisticBert:
    """A model whose packed embeddings can be read: each channel holds one number, and no norm mixes them."""
    model = VisualLinguisticBert(small(visual_ln=False, **changes))
    model.embedding_LayerNorm = nn.Identity()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        for table, channel in (
            (model.position_embeddings, POSITION),
            (model.token_type_embeddings, TYPE),
            (model.word_embeddings, WORD),
        ):
            table.weight[:, channel] = torch.arange(table.num_embeddings).float()
        model.end_embedding.weight[0, END] = 1
        model.visual_scale_text.fill_(1)
        model.visual_scale_object.fill_(1)
    return model.eval()


def channel(rows: Tensor, index: int, size: int = 8) -> Tensor:
    """[B, N] numbers as vectors [B, N, size] with the number in one channel."""
    out = torch.zeros(*rows.shape, size)
    out[..., index] = rows.float()
    return out


def inputs(text_mask: list[list[int]], object_mask: list[list[int]]) -> dict[str, Tensor]:
    """Words 10, 11, ... of alternating segments, regions 1, 2, ...; values in the holes would be seen at once."""
    text, objects = torch.tensor(text_mask).bool(), torch.tensor(object_mask).bool()
    ids = (10 + torch.arange(text.shape[1])).expand_as(text)
    regions = (1 + torch.arange(objects.shape[1])).expand_as(objects)
    return {
        "text_ids": ids.clone(),
        "segment_ids": (ids % 2).clone(),
        "text_visual": channel(ids, TEXT_VISUAL),
        "text_mask": text,
        "object_visual": channel(regions, REGION_VISUAL),
        "object_linguistic": channel(regions, REGION),
        "object_mask": objects,
    }


def random_inputs(text_mask: list[list[int]], object_mask: list[list[int]]) -> dict[str, Tensor]:
    got = inputs(text_mask, object_mask)
    for name in ("text_visual", "object_visual", "object_linguistic"):
        got[name] = torch.randn_like(got[name])
    return got


class TestPacking:
    def test_the_verified_example(self):
        """Original 2.5 to 2.7: t = [4, 5], o = [3, 1]."""
        given = inputs([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], [[1, 1, 1], [1, 0, 0]])
        given["segment_ids"] = torch.zeros_like(given["segment_ids"])
        packed = readable().embed(**given)
        read = packed.embeddings
        assert read.shape == (2, 8, 8)
        assert read[..., POSITION].tolist() == [[0, 1, 2, 3, 4, 4, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7]]
        assert read[..., TYPE].tolist() == [[0, 0, 0, 0, 2, 2, 2, 2], [0, 0, 0, 0, 0, 2, 2, 0]]
        assert read[..., WORD].tolist() == [[10, 11, 12, 13, 0, 0, 0, 0], [10, 11, 12, 13, 14, 0, 0, 0]]
        assert read[..., TEXT_VISUAL].tolist() == read[..., WORD].tolist()
        assert read[..., REGION].tolist() == [[0, 0, 0, 0, 1, 2, 3, 0], [0, 0, 0, 0, 0, 1, 0, 0]]
        assert read[..., REGION_VISUAL].tolist() == read[..., REGION].tolist()
        assert read[..., END].tolist() == [[0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1, 0]]
        assert packed.mask.int().tolist() == [[1] * 8, [1] * 7 + [0]]
        assert packed.text_mask.int().tolist() == [[1] * 4 + [0] * 4, [1] * 5 + [0] * 3]
        assert packed.object_mask.int().tolist() == [[0] * 4 + [1] * 3 + [0], [0] * 5 + [1, 0, 0]]

    def test_holes_are_closed_in_order(self):
        given = inputs([[1, 0, 1, 1], [0, 1, 0, 1]], [[0, 1, 1], [1, 0, 1]])
        read = readable().embed(**given).embeddings
        assert read[..., WORD].tolist() == [[10, 12, 13, 0, 0, 0], [11, 13, 0, 0, 0, 0]]
        assert read[..., REGION].tolist() == [[0, 0, 0, 2, 3, 0], [0, 0, 1, 3, 0, 0]]
        assert read[..., TYPE].tolist() == [[0, 0, 1, 2, 2, 2], [1, 1, 2, 2, 2, 0]]
        assert read[..., POSITION].tolist() == [[0, 1, 2, 3, 3, 4], [0, 1, 2, 2, 3, 5]]

    def test_end_exists_without_regions_and_skips_their_position(self):
        read = readable().embed(**inputs([[1, 1], [1, 0]], [[0], [1]])).embeddings
        assert read[..., END].tolist() == [[0, 0, 1], [0, 0, 1]]
        assert read[..., POSITION].tolist() == [[0, 1, 3], [0, 1, 2]]
        assert read[..., TYPE].tolist() == [[0, 1, 2], [0, 2, 2]]

    def test_no_region_column_at_all(self):
        read = readable().embed(**inputs([[1, 1]], [[]])).embeddings
        assert read[0, :, WORD].tolist() == [10, 11, 0] and read[0, :, END].tolist() == [0, 0, 1]

    def test_roberta_offset(self):
        """c = position_padding_idx + 1 = 2 for every position."""
        read = readable(position_padding_idx=1).embed(**inputs([[1, 1], [1, 1]], [[1, 1], [0, 0]])).embeddings
        assert read[..., POSITION].tolist() == [[2, 3, 4, 4, 5], [2, 3, 5, 5, 6]]

    def test_padding_beyond_the_position_table_is_clamped(self):
        """Original 2.8: 13 packed positions, a table of 6, and no real element needs more than row 4."""
        given = inputs([[1, 1, 0], [1, 1, 1]], [[1] * 10, [0] * 10])
        model = readable(max_position_embeddings=6)
        packed = model.embed(**given)
        assert packed.embeddings[1, :4, POSITION].tolist() == [0, 1, 2, 4]
        assert packed.embeddings[0, :, POSITION].tolist() == [0, 1] + [2] * 10 + [3]
        alone = model.embed(**{k: v[1:] for k, v in given.items()})
        assert torch.equal(packed.embeddings[1, :4], alone.embeddings[0])

    def test_a_real_element_beyond_the_table_still_fails(self):
        with pytest.raises(IndexError):
            readable(max_position_embeddings=4).embed(**inputs([[1] * 5], [[1]]))

    @pytest.mark.parametrize("visual_ln", [False, True])
    def test_inputs_are_not_changed(self, visual_ln):
        """Original 2.9: the original scaled the caller's tensors in place."""
        model = VisualLinguisticBert(small(visual_ln=visual_ln, visual_scale_object_init=0.5)).eval()
        given = random_inputs([[1, 1, 0]], [[1, 0, 1]])
        before = {k: v.clone() for k, v in given.items()}
        model(**given)
        assert all(torch.equal(given[k], before[k]) for k in given)

    def test_visual_features_are_scaled_by_their_own_scalars(self):
        model = readable()
        with torch.no_grad():
            model.visual_scale_text.fill_(0.5)
            model.visual_scale_object.fill_(3.0)
        read = model.embed(**inputs([[1, 1]], [[1, 1]])).embeddings[0]
        assert read[:, TEXT_VISUAL].tolist() == [5, 5.5, 0, 0, 0]
        assert read[:, REGION_VISUAL].tolist() == [0, 0, 3, 6, 0]


class TestOutputs:
    @staticmethod
    def echo() -> VisualLinguisticBert:
        """A readable model whose encoder hands its input on."""
        model = readable()
        model.encoder = nn.Identity()
        model.encoder.forward = lambda hidden, *args: EncoderOutput([hidden], None)
        return model

    def test_regions_return_to_their_slots(self):
        out = self.echo()(**inputs([[1, 1, 1], [1, 0, 0]], [[0, 1, 0, 1], [1, 1, 1, 0]]))
        assert out.objects[..., REGION].tolist() == [[0, 2, 0, 4], [1, 2, 3, 0]]
        assert (out.objects[0, [0, 2]] == 0).all() and (out.objects[1, 3] == 0).all()

    def test_text_is_a_slice_of_the_padded_length(self):
        """Original 2.10: beyond its own words a sample shows its regions, END or padding."""
        out = self.echo()(**inputs([[1, 1, 1, 0], [1, 0, 0, 0]], [[1], [1]]))
        assert out.text.shape == (2, 4, 8)
        assert out.text[..., WORD].tolist() == [[10, 11, 12, 0], [10, 0, 0, 0]]
        assert out.text[..., REGION].tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]
        assert out.text[..., END].tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]

    def test_text_has_only_as_many_columns_as_there_are_positions(self):
        out = self.echo()(**inputs([[1, 0, 0, 0, 0]], [[0]]))
        assert out.text.shape == (1, 2, 8)

    def test_pooled_layers_and_attention(self):
        torch.manual_seed(0)
        model = VisualLinguisticBert(small(with_pooler=True)).eval()
        given = random_inputs([[1, 1, 0], [1, 1, 1]], [[1, 0], [1, 1]])
        out = model(**given, all_layers=True, with_attention=True)
        assert len(out.layers) == 2 and [a.shape for a in out.attention] == [(2, 2, 6, 6)] * 2
        torch.testing.assert_close(out.pooled, model.pooler(out.layers[-1]))
        torch.testing.assert_close(model(**given).layers[0][out.mask], out.layers[-1][out.mask])
        assert VisualLinguisticBert(small())(**given).pooled is None

    def test_a_sample_does_not_depend_on_its_batch(self):
        torch.manual_seed(0)
        model = VisualLinguisticBert(small(visual_scale_object_init=1.0, visual_scale_text_init=1.0)).eval()
        given = random_inputs([[1, 1, 0, 0], [1, 1, 1, 1]], [[1, 0, 0], [1, 1, 1]])
        together = model(**given)
        alone = model(**{k: v[:1] for k, v in given.items()})
        torch.testing.assert_close(together.layers[-1][0, :4], alone.layers[-1][0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(together.objects[0], alone.objects[0], atol=1e-6, rtol=1e-5)


class TestInitialWeights:
    def test_visual_gains_start_as_configured(self):
        """Original 2.11: gain 0 hides all visual content."""
        model = VisualLinguisticBert(small(visual_scale_text_init=0.0, visual_scale_object_init=0.25))
        assert (model.visual_ln_text.weight == 0).all() and (model.visual_ln_object.weight == 0.25).all()
        scalars = VisualLinguisticBert(small(visual_ln=False, visual_scale_object_init=0.25))
        assert scalars.visual_scale_text.item() == 0 and scalars.visual_scale_object.item() == 0.25
        assert [n for n, _ in scalars.named_parameters()][:2] == ["visual_scale_text", "visual_scale_object"]

    def test_projections_exist_only_for_another_visual_size(self):
        assert VisualLinguisticBert(small()).visual_1x1_text is None
        model = VisualLinguisticBert(small(visual_size=12))
        assert model.visual_1x1_object.weight.shape == (8, 12)


class TestFrozenWords:
    @pytest.mark.parametrize("kind", [VisualLinguisticBert, VisualLinguisticBertForPretraining])
    def test_special_rows_are_a_trainable_copy(self, kind):
        """Original 2.12: the original drew the special table of the pretraining variant at random."""
        torch.manual_seed(0)
        model = kind(small(vocab_size=NUM_SPECIAL_WORDS + 5, word_embedding_frozen=True, with_pooler=True))
        words, special = model.word_embeddings.weight, model.special_word_embeddings.weight
        assert special.shape == (1000, 8)
        assert torch.equal(special, words[:NUM_SPECIAL_WORDS])
        assert special.requires_grad and not words.requires_grad

    def test_only_small_ids_read_the_special_table(self):
        model = readable(vocab_size=NUM_SPECIAL_WORDS + 5, word_embedding_frozen=True)
        with torch.no_grad():
            model.special_word_embeddings.weight[:, WORD] = -1.0
        given = inputs([[1, 1, 1]], [[0]])
        given["text_ids"] = torch.tensor([[7, NUM_SPECIAL_WORDS - 1, NUM_SPECIAL_WORDS]])
        assert model.embed(**given).embeddings[0, :3, WORD].tolist() == [-1, -1, NUM_SPECIAL_WORDS]

    def test_a_vocabulary_smaller_than_the_special_table(self):
        model = VisualLinguisticBert(small(word_embedding_frozen=True))
        assert torch.equal(model.special_word_embeddings.weight[:40], model.word_embeddings.weight)


class TestPretraining:
    def test_heads_and_their_keys(self):
        """Original 2.15, with the misspelling of the published files."""
        plain = set(VisualLinguisticBert(small(with_pooler=True)).state_dict())
        model = VisualLinguisticBertForPretraining(small(with_pooler=True), num_region_classes=9)
        assert set(model.state_dict()) - plain == {
            "relationsip_head.caption_image_relationship.weight",
            "relationsip_head.caption_image_relationship.bias",
            "mlm_head.predictions.bias",
            "mlm_head.predictions.transform.dense.weight",
            "mlm_head.predictions.transform.dense.bias",
            "mlm_head.predictions.transform.LayerNorm.weight",
            "mlm_head.predictions.transform.LayerNorm.bias",
            "mlm_head.predictions.decoder.weight",
            "mvrc_head.transform.dense.weight",
            "mvrc_head.transform.dense.bias",
            "mvrc_head.region_cls_pred.weight",
            "mvrc_head.region_cls_pred.bias",
        }
        assert model.mlm_head.predictions.decoder.weight is model.word_embeddings.weight
        assert model.mvrc_head.region_cls_pred.out_features == 9

    def test_heads_can_be_left_out(self):
        model = VisualLinguisticBertForPretraining(small(), False, False, False)
        assert not [k for k in model.state_dict() if "head" in k]

    def test_relationship_needs_the_pooler(self):
        with pytest.raises(ValueError, match="with_pooler"):
            VisualLinguisticBertForPretraining(small(), with_relationship=True)

    def test_positions_can_be_frozen(self):
        model = VisualLinguisticBertForPretraining(small(), False, position_embedding_frozen=True)
        assert not model.position_embeddings.weight.requires_grad and model.word_embeddings.weight.requires_grad


LARGE = {"hidden_size": 1024, "visual_size": 1024, "num_hidden_layers": 24} | {
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}


@pytest.mark.parametrize(
    ("sizes", "keys", "parameters"),
    [
        ({"with_pooler": True}, 204, 109_486_848),
        ({}, 202, 108_896_256),
        (LARGE | {"with_pooler": True}, 396, 335_148_032),
        (LARGE, 394, 334_098_432),
    ],
)
def test_counts_of_the_published_sizes(sizes, keys, parameters):
    """Original 2.17."""
    with torch.device("meta"):
        model = VisualLinguisticBert(VLBertSizes(**sizes))
    assert len(model.state_dict()) == keys
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("sizes", "relationship", "keys", "parameters"),
    [
        ({}, False, 212, 111_340_667),
        ({"with_pooler": True}, True, 216, 111_932_797),
        (LARGE, False, 404, 337_871_227),
        (LARGE | {"with_pooler": True}, True, 408, 338_922_877),
    ],
)
def test_counts_of_the_pretraining_variant(sizes, relationship, keys, parameters):
    """Original 2.14: the tied matrix has two keys and counts once."""
    with torch.device("meta"):
        model = VisualLinguisticBertForPretraining(VLBertSizes(**sizes), relationship)
    assert len(model.state_dict()) == keys
    assert sum(p.numel() for p in model.parameters()) == parameters

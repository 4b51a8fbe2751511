"""VL-BERT: words and regions in one sequence, encoded by BERT (paper figure 1; original 2.4 to 2.15)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.nn.bert import Pooler, init_weights, layer_norm
from common.nn.heads import MaskedLanguageHead, MaskedRegionHead, RelationshipHead
from common.nn.packing import longest
from common.nn.parts import PLAIN, Parts
from common.places import PackedSequences

# With frozen word embeddings, the first ids (special tokens and unused ones) have a table of their own that trains.
NUM_SPECIAL_WORDS = 1000
OBJECT_TYPE = 2  # token type of regions and of the END element


@dataclass(frozen=True)
class VLBertSizes:
    """Sizes and rates of a VisualLinguisticBert. The names are those of the config section NETWORK.VLBERT."""

    hidden_size: int = 768
    visual_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    vocab_size: int = 30522
    max_position_embeddings: int = 512
    type_vocab_size: int = 3
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    visual_ln: bool = True
    visual_scale_text_init: float = 0.0
    visual_scale_object_init: float = 0.0
    with_pooler: bool = False
    word_embedding_frozen: bool = False
    position_padding_idx: int = -1


class EncoderInput(NamedTuple):
    """embeddings: [B, L, H]. mask: bool [B, L], the real positions. text_mask, object_mask: bool [B, L], those of
    words and of regions."""

    embeddings: Tensor
    mask: Tensor
    text_mask: Tensor
    object_mask: Tensor


class VLBertOutput(NamedTuple):
    """layers: encoder outputs, each [B, L, H]; only the last one unless all layers were requested.
    text: [B, min(T, L), H], the first T positions of the sequence. After a sample's own words they hold its regions,
    END or padding.
    objects: [B, R, H], aligned with the given regions, zero where the mask is False.
    pooled: [B, H], or None without a pooler. attention: per layer [B, heads, L, L], or None. mask: bool [B, L]."""

    layers: list[Tensor]
    text: Tensor
    objects: Tensor
    pooled: Tensor | None
    attention: list[Tensor] | None
    mask: Tensor


class VisualLinguisticBert(nn.Module):
    """Embeddings of words and regions, and the encoder. State-dict keys and parameter order are those of the published
    checkpoints (original 2.17).

    parts: classes of the encoder and of the dropout. recompute: as in Encoder.
    """

    def __init__(self, sizes: VLBertSizes, parts: Parts = PLAIN, recompute: bool = False) -> None:
        super().__init__()
        hidden, visual = sizes.hidden_size, sizes.visual_size
        self.sizes = sizes
        if not sizes.visual_ln:
            self.visual_scale_text = nn.Parameter(torch.tensor(float(sizes.visual_scale_text_init)))
            self.visual_scale_object = nn.Parameter(torch.tensor(float(sizes.visual_scale_object_init)))
        self.word_embeddings = nn.Embedding(sizes.vocab_size, hidden)
        self.end_embedding = nn.Embedding(1, hidden)
        self.position_embeddings = nn.Embedding(sizes.max_position_embeddings, hidden)
        self.token_type_embeddings = nn.Embedding(sizes.type_vocab_size, hidden)
        self.embedding_LayerNorm = layer_norm(hidden)
        self.embedding_dropout = parts.dropout(sizes.hidden_dropout_prob)
        self.visual_1x1_text = nn.Linear(visual, hidden) if visual != hidden else None
        self.visual_1x1_object = nn.Linear(visual, hidden) if visual != hidden else None
        if sizes.visual_ln:
            self.visual_ln_text = layer_norm(hidden)
            self.visual_ln_object = layer_norm(hidden)
        self.encoder = parts.encoder(
            sizes.num_hidden_layers,
            hidden,
            sizes.num_attention_heads,
            sizes.intermediate_size,
            sizes.hidden_act,
            sizes.hidden_dropout_prob,
            sizes.attention_probs_dropout_prob,
            recompute,
        )
        self.pooler = Pooler(hidden) if sizes.with_pooler else None
        self.reset_parameters()
        if sizes.word_embedding_frozen:
            self.word_embeddings.weight.requires_grad_(False)
            self.special_word_embeddings = nn.Embedding(NUM_SPECIAL_WORDS, hidden)
            self.copy_special_words()

    def reset_parameters(self) -> None:
        """Initial weights by the BERT rule. The visual norms start at the configured scales."""
        init_weights(self, self.sizes.initializer_range)
        if self.sizes.visual_ln:
            nn.init.constant_(self.visual_ln_text.weight, self.sizes.visual_scale_text_init)
            nn.init.constant_(self.visual_ln_object.weight, self.sizes.visual_scale_object_init)

    def copy_special_words(self) -> None:
        """Copy the first words into the table that trains. Loaders call it after the word table changed."""
        if self.sizes.word_embedding_frozen:
            first = self.word_embeddings.weight.detach()[:NUM_SPECIAL_WORDS]
            self.special_word_embeddings.weight.data[: len(first)] = first

    def forward(
        self,
        text_ids: Tensor,
        segment_ids: Tensor,
        text_visual: Tensor,
        text_mask: Tensor,
        object_visual: Tensor,
        object_linguistic: Tensor,
        object_mask: Tensor,
        all_layers: bool = False,
        with_attention: bool = False,
        sequences: PackedSequences | None = None,
    ) -> VLBertOutput:
        """Encode words and regions together.

        text_ids, segment_ids: int64 [B, T]. text_visual: [B, T, D], the visual feature of each word.
        text_mask: bool [B, T]. object_visual: [B, R, D]. object_linguistic: [B, R, H]. object_mask: bool [B, R].
        Masks may have holes; the sequence has the real elements in order. sequences: of the B rows, None to find them
        from the masks.
        """
        length = None if sequences is None else sequences.length
        given = self.embed(
            text_ids, segment_ids, text_visual, text_mask, object_visual, object_linguistic, object_mask, length
        )
        at = None if sequences is None else sequences.at
        encoded = self.encoder(given.embeddings, given.mask, all_layers, with_attention, at)
        last = encoded.layers[-1]  # (B, L, H)
        return VLBertOutput(
            layers=encoded.layers,
            text=last[:, : text_ids.shape[1]],
            objects=_object_states(last, text_mask, object_mask),
            pooled=self.pooler(last) if self.pooler is not None else None,
            attention=encoded.attention,
            mask=given.mask,
        )

    def embed(
        self,
        text_ids: Tensor,
        segment_ids: Tensor,
        text_visual: Tensor,
        text_mask: Tensor,
        object_visual: Tensor,
        object_linguistic: Tensor,
        object_mask: Tensor,
        length: int | None = None,
    ) -> EncoderInput:
        """The input of the encoder: words, regions, END, padding (original 2.5 to 2.7). Arguments as in forward.

        length: L, that of the longest sequence, None to find it from the masks.
        """
        batch, num_words = text_ids.shape
        text = self._words(text_ids) + self._text_visual(text_visual)  # (B, T, H)
        objects = object_linguistic + self._object_visual(object_visual)  # (B, R, H)
        end_word = self.end_embedding(text_ids.new_zeros(1, 1))  # (1, 1, H)

        num_text, num_objects = text_mask.sum(1, keepdim=True), object_mask.sum(1, keepdim=True)  # (B, 1)
        end = num_text + num_objects  # (B, 1), the position of END
        if length is None:
            length = longest(end, num_words + object_mask.shape[1]) + 1
        position = torch.arange(length, device=text_ids.device)[None]  # (1, L)
        is_text, is_object = position < num_text, (position >= num_text) & (position < end)  # (B, L)

        # One gather from the table [words | regions | END]. A stable sort by mask brings real elements to the front.
        table = torch.cat([text, objects, end_word.expand(batch, -1, -1)], dim=1)  # (B, T + R + 1, H)
        order = torch.cat([_real_first(text_mask), _real_first(object_mask) + num_words], dim=1)  # (B, T + R)
        last = table.shape[1] - 1  # the index of END
        slot = torch.where(is_text, position, position - num_text + num_words).clamp(0, last - 1)  # (B, L)
        index = torch.where(is_text | is_object, order.gather(1, slot), last)  # (B, L)
        content = table.gather(1, index[..., None].expand(-1, -1, table.shape[-1]))  # (B, L, H)
        content = content.masked_fill((position > end)[..., None], 0.0)

        text_types = segment_ids.gather(1, _real_first(text_mask))  # (B, T)
        types = text_types.gather(1, position.clamp(max=num_words - 1).expand(batch, -1))  # (B, L)
        types = torch.where(is_text, types, OBJECT_TYPE).masked_fill(position > end, 0)

        content = content + self.position_embeddings(self._positions(position, num_text, end))
        content = content + self.token_type_embeddings(types)
        embeddings = self.embedding_dropout(self.embedding_LayerNorm(content))  # (B, L, H)
        return EncoderInput(embeddings, position <= end, is_text, is_object)

    def _positions(self, position: Tensor, num_text: Tensor, end: Tensor) -> Tensor:
        """Position ids [B, L]: words count up, all regions share the next id, END has the one after it."""
        ids = torch.where(position < num_text, position, num_text)
        ids = torch.where(position == end, num_text + 1, ids)
        ids = torch.where(position > end, position, ids)
        # Padding may lie beyond the table; its id does not matter (original 2.8).
        limit = torch.where(
            position > end, self.sizes.max_position_embeddings - 1, ids + self.sizes.position_padding_idx + 1
        )
        return torch.minimum(ids + self.sizes.position_padding_idx + 1, limit)

    def _words(self, ids: Tensor) -> Tensor:
        words = self.word_embeddings(ids)
        if not self.sizes.word_embedding_frozen:
            return words
        special = self.special_word_embeddings(ids.clamp(max=NUM_SPECIAL_WORDS - 1))
        return torch.where((ids < NUM_SPECIAL_WORDS)[..., None], special, words)

    def _text_visual(self, x: Tensor) -> Tensor:
        x = self.visual_1x1_text(x) if self.visual_1x1_text is not None else x
        return self.visual_ln_text(x) if self.sizes.visual_ln else x * self.visual_scale_text

    def _object_visual(self, x: Tensor) -> Tensor:
        x = self.visual_1x1_object(x) if self.visual_1x1_object is not None else x
        return self.visual_ln_object(x) if self.sizes.visual_ln else x * self.visual_scale_object


class VisualLinguisticBertForPretraining(VisualLinguisticBert):
    """VisualLinguisticBert with its pretraining heads (original 2.13).

    with_relationship, with_mlm, with_mvrc: which heads exist. num_region_classes: width of the region head.
    parts, recompute: as in VisualLinguisticBert. Raises ValueError for a relationship head without a pooler.
    """

    def __init__(
        self,
        sizes: VLBertSizes,
        with_relationship: bool = True,
        with_mlm: bool = True,
        with_mvrc: bool = True,
        num_region_classes: int = 1601,
        position_embedding_frozen: bool = False,
        parts: Parts = PLAIN,
        recompute: bool = False,
    ) -> None:
        super().__init__(sizes, parts, recompute)
        if with_relationship and not sizes.with_pooler:
            raise ValueError("the relationship head reads the pooler: set NETWORK.VLBERT.with_pooler true")
        hidden, act = sizes.hidden_size, sizes.hidden_act
        # The misspelling is part of the published state-dict keys.
        self.relationsip_head = RelationshipHead(hidden) if with_relationship else None
        self.mlm_head = MaskedLanguageHead(self.word_embeddings, act) if with_mlm else None
        self.mvrc_head = MaskedRegionHead(hidden, act, num_region_classes) if with_mvrc else None
        for head in (self.relationsip_head, self.mlm_head, self.mvrc_head):
            if head is not None:
                init_weights(head, sizes.initializer_range)
        self.copy_special_words()
        self.position_embeddings.weight.requires_grad_(not position_embedding_frozen)


def _real_first(mask: Tensor) -> Tensor:
    """Indices that bring the True entries of each row to the front, order kept: bool [B, N] -> int64 [B, N]."""
    place = torch.arange(mask.shape[1], device=mask.device)
    return torch.argsort(torch.where(mask, place, place + mask.shape[1]), dim=1)


def _object_states(hidden: Tensor, text_mask: Tensor, object_mask: Tensor) -> Tensor:
    """The state of each given region: [B, L, H] -> [B, R, H], zero where object_mask is False."""
    position = text_mask.sum(1, keepdim=True) + object_mask.cumsum(1) - 1  # (B, R)
    position = position.clamp(min=0)
    states = hidden.gather(1, position[..., None].expand(-1, -1, hidden.shape[-1]))  # (B, R, H)
    return states.masked_fill(~object_mask[..., None], 0.0)

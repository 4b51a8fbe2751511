"""VL-BERT in pretraining: masked words and masked regions, captions and plain text
(paper §3.3; original 5.17 to 5.24)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import Config
from common.data.collate import clip_pad
from common.data.sample import Batch, ModelOutput
from common.nn.fast_rcnn import FEATURE_DIM, FastRCNN
from common.nn.packing import pack, unpack
from common.nn.vl_bert import VisualLinguisticBert, VisualLinguisticBertForPretraining
from common.places import PackedSequences, target_places
from common.weights.build import build_fast_rcnn, build_vlbert, build_vlbert_for_pretraining
from pretrain.losses import masked_region_loss, masked_word_loss


class Rows(NamedTuple):
    """Words and regions of B rows on their way into the encoder; the fields are arguments of VisualLinguisticBert."""

    text_ids: Tensor
    segment_ids: Tensor
    text_visual: Tensor
    text_mask: Tensor
    object_visual: Tensor
    object_linguistic: Tensor
    object_mask: Tensor


class PretrainingEncoder(nn.Module):
    """What the pretraining modules share: a caption with its regions, some of them masked, through the encoder.

    mask_feature: there is a learned feature that stands for the appearance of a masked region; without it the pixels
    were masked. mask_word: there is a learned word that stands at a masked region. multitask: rows of plain text may
    follow. The attribute names are those of the published state dicts (original 5.17).
    """

    def __init__(
        self,
        image_feature_extractor: FastRCNN,
        vlbert: VisualLinguisticBert,
        mask_feature: bool,
        mask_word: bool,
        multitask: bool,
    ) -> None:
        super().__init__()
        hidden, std = vlbert.sizes.hidden_size, vlbert.sizes.initializer_range
        self.image_feature_extractor = image_feature_extractor
        self.object_linguistic_embeddings = _embedding(hidden, std)
        self.object_mask_visual_embedding = _embedding(FEATURE_DIM, 0.0) if mask_feature else None
        self.object_mask_word_embedding = _embedding(hidden, std) if mask_word else None
        self.aux_text_visual_embedding = _embedding(hidden, std) if multitask else None
        self.vlbert = vlbert

    @property
    def language_model(self) -> VisualLinguisticBert:
        """The part that language weights are loaded into."""
        return self.vlbert

    def rows(self, batch: Batch) -> Rows:
        """The captions of a batch; the target `mvrc_ops` [B, R] says which regions are masked (1)."""
        ops = batch.targets.get("mvrc_ops")
        masked = torch.zeros_like(batch.box_mask) if ops is None else ops == 1
        feature = None
        first = batch.text_ids.new_zeros(())  # the only index of each embedding below
        if self.object_mask_visual_embedding is not None:
            feature = self.object_mask_visual_embedding(first)  # (2048,)
        regions = self.image_feature_extractor(
            batch.image,
            batch.boxes,
            batch.box_mask,
            batch.im_info,
            features=batch.features,
            masked=masked,
            mask_feature=feature,
            image_row=batch.image_row,
            box_places=batch.places.boxes,
        ).reps
        words = self.object_linguistic_embeddings(first)  # (H,)
        if self.object_mask_word_embedding is not None:
            words = torch.where(masked[..., None], self.object_mask_word_embedding(first), words)  # (B, R, H)
        return Rows(
            text_ids=batch.text_ids,
            segment_ids=batch.segment_ids,
            text_visual=regions[:, :1].expand(-1, batch.text_ids.shape[1], -1),
            text_mask=batch.text_mask,
            object_visual=regions,
            object_linguistic=words.expand(*masked.shape, -1),
            object_mask=batch.box_mask,
        )

    def joint_rows(self, batch: Batch) -> Rows:
        """The captions of a batch and below them the texts of its auxiliary batches, which have no regions."""
        captions = self.rows(batch)
        if not batch.auxiliary:
            return captions
        if self.aux_text_visual_embedding is None:
            raise ValueError("the batch has auxiliary batches of text, which only a multitask module takes")
        texts = batch.auxiliary
        width = max(b.text_ids.shape[1] for b in (batch, *texts))
        count = sum(len(b) for b in texts)
        visual = self.aux_text_visual_embedding(batch.text_ids.new_zeros(1)).to(captions.text_visual.dtype)  # (1, H)
        return Rows(
            text_ids=_stack([b.text_ids for b in (batch, *texts)], width),
            segment_ids=_stack([b.segment_ids for b in (batch, *texts)], width),
            text_visual=torch.cat([_widen(captions.text_visual, width), visual.expand(count, width, -1)]),
            text_mask=_stack([b.text_mask for b in (batch, *texts)], width),
            object_visual=_append_zeros(captions.object_visual, count),
            object_linguistic=_append_zeros(captions.object_linguistic, count),
            object_mask=_append_zeros(captions.object_mask, count),
        )

    def joint_sequences(self, batch: Batch) -> PackedSequences | None:
        """The sequences of `joint_rows`, None where a batch does not know its own."""
        batches = (batch, *batch.auxiliary)
        known = [b.places.sequences for b in batches if b.places.sequences is not None]
        return PackedSequences.joined(known, [len(b) for b in batches]) if len(known) == len(batches) else None


class VLBertForPretraining(PretrainingEncoder):
    """Masked words, masked regions and, where there is a head, whether caption and image belong together.

    mlm_norm_in_batch_first, mvrc_norm_in_batch_first: a loss is averaged over each sample before the batch.

    all_positions: the heads for words and regions run at every position, as in the original, and their logits are
    [B, T, V] and [B, R, C]. By default they do so only for a batch without targets, and otherwise run only where there
    is something to predict.
    """

    vlbert: VisualLinguisticBertForPretraining

    def __init__(
        self,
        image_feature_extractor: FastRCNN,
        vlbert: VisualLinguisticBertForPretraining,
        mask_feature: bool,
        multitask: bool,
        mlm_norm_in_batch_first: bool = False,
        mvrc_norm_in_batch_first: bool = False,
        all_positions: bool = False,
    ) -> None:
        super().__init__(image_feature_extractor, vlbert, mask_feature, vlbert.mvrc_head is not None, multitask)
        self.multitask = multitask
        self.mlm_norm_in_batch_first = mlm_norm_in_batch_first
        self.mvrc_norm_in_batch_first = mvrc_norm_in_batch_first
        self.all_positions = all_positions

    def forward(self, batch: Batch) -> ModelOutput:
        """Needs boxes, images or features, and text; all targets or none.

        targets: mlm_labels [B, T], the word to predict or -1; mvrc_ops [B, R], 1 where a region is masked; mvrc_mask
        bool [B, R], regions to predict; mvrc_labels [B, K, C], a distribution for each of those, in order, padded to
        the largest K; relationship_label [B]. An auxiliary batch has mlm_labels alone.

        losses: mlm_loss (of multitask: mlm_loss_wvc of captions and mlm_loss_aux of texts), mvrc_loss,
        relationship_loss; zero where a head is missing. The loss is their sum.
        predictions: mlm_logits [n, V] and mlm_label [n] of the n words to predict, mvrc_logits [m, C] and mvrc_label
        [m, C] of the regions, relationship_logits [B, 2]; multitask has mlm_logits_wvc, mlm_logits_aux and so on.
        """
        encoded = self.vlbert(*self.joint_rows(batch), sequences=self.joint_sequences(batch))
        output = ModelOutput({})
        # The rows of the captions; without a slice where they are all, because their number may be a symbol.
        captions = slice(len(batch)) if batch.auxiliary else slice(None)
        self._words(output, "_wvc" if self.multitask else "", encoded.text[captions], [batch])
        if batch.auxiliary:
            self._words(output, "_aux", encoded.text[len(batch) :], batch.auxiliary)
        self._regions(output, encoded.objects[captions], batch)
        self._relationship(output, None if encoded.pooled is None else encoded.pooled[captions], batch)
        if batch.targets:
            for name, missing in self._switched_off(batch):
                output.losses.setdefault(name, missing)
            output.loss = torch.stack(list(output.losses.values())).sum()
        return output

    def _words(self, output: ModelOutput, suffix: str, hidden: Tensor, batches: Sequence[Batch]) -> None:
        """Predictions and loss at the text [n, T, H] of some batches."""
        head = self.vlbert.mlm_head
        if head is None:
            return
        if "mlm_labels" not in batches[0].targets:
            output.predictions[f"mlm_logits{suffix}"] = head(hidden)
            return
        labels = _stack([b.targets["mlm_labels"] for b in batches], hidden.shape[1], -1)
        wanted = _masked_words(batches, labels)  # (n,)
        logits, chosen = self._at(head, hidden, wanted)
        words = pack(labels, wanted)
        output.predictions |= {
            f"mlm_logits{suffix}": logits,
            f"mlm_label{suffix}": labels if self.all_positions else words,
        }
        sample = wanted // labels.shape[1] if self.mlm_norm_in_batch_first else None
        output.losses[f"mlm_loss{suffix}"] = masked_word_loss(chosen, words, sample, len(labels))

    def _regions(self, output: ModelOutput, hidden: Tensor, batch: Batch) -> None:
        """Predictions and loss at the regions [B, R, H]."""
        head = self.vlbert.mvrc_head
        if head is None:
            return
        if "mvrc_mask" not in batch.targets:
            output.predictions["mvrc_logits"] = head(hidden)
            return
        mask, labels = batch.targets["mvrc_mask"], batch.targets["mvrc_labels"]
        known = batch.places.targets.get("mvrc_mask")
        wanted = target_places(mask) if known is None else known  # (m,)
        sample = wanted // mask.shape[1]
        number = pack(mask.cumsum(1) - 1, wanted)  # (m,), of a region among those of its sample
        rows = pack(labels, sample * labels.shape[1] + number)  # (m, C)
        logits, chosen = self._at(head, hidden, wanted)
        output.predictions |= {
            "mvrc_logits": logits,
            "mvrc_label": unpack(rows, mask, wanted) if self.all_positions else rows,
        }
        by_sample = sample if self.mvrc_norm_in_batch_first else None
        output.losses["mvrc_loss"] = masked_region_loss(chosen, rows, by_sample, len(mask))

    def _at(self, head: nn.Module, hidden: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Logits to report, and those at `wanted`, indices of [B * n], of states [B, n, H]."""
        if self.all_positions:
            logits = head(hidden)
            return logits, pack(logits, wanted)
        chosen = head(pack(hidden, wanted))
        return chosen, chosen

    def _relationship(self, output: ModelOutput, pooled: Tensor | None, batch: Batch) -> None:
        head = self.vlbert.relationsip_head
        if head is None or pooled is None:
            return
        logits = head(pooled)
        output.predictions["relationship_logits"] = logits
        if "relationship_label" in batch.targets:
            output.losses["relationship_loss"] = F.cross_entropy(logits.float(), batch.targets["relationship_label"])

    def _switched_off(self, batch: Batch) -> list[tuple[str, Tensor]]:
        """Names of all losses with a zero for those that have no head."""
        words = ["mlm_loss_wvc", *(["mlm_loss_aux"] if batch.auxiliary else [])] if self.multitask else ["mlm_loss"]
        zero = batch.im_info.new_zeros(())
        return [(name, zero) for name in (*words, "mvrc_loss", "relationship_loss")]


class VLBertForAttention(PretrainingEncoder):
    """The encoder of pretraining without heads, for looking inside (original 5.24)."""

    def forward(self, batch: Batch) -> ModelOutput:
        """predictions: attention_probs [B + A, layers, heads, L, L]; hidden_states [B + A, layers, L, H] of layers
        1..n; mask bool [B + A, L], the real positions. A: rows of the auxiliary batches."""
        encoded = self.vlbert(
            *self.joint_rows(batch), all_layers=True, with_attention=True, sequences=self.joint_sequences(batch)
        )
        return ModelOutput(
            {
                "attention_probs": torch.stack(encoded.attention or [], dim=1),
                "hidden_states": torch.stack(encoded.layers, dim=1),
                "mask": encoded.mask,
            }
        )


def _embedding(size: int, std: float) -> nn.Embedding:
    embedding = nn.Embedding(1, size)
    nn.init.normal_(embedding.weight, std=std)
    return embedding


def _masked_words(batches: Sequence[Batch], labels: Tensor) -> Tensor:
    """The words to predict of some batches with the joint labels [n, T], as indices of [n * T]."""
    found, start = [], 0
    for batch in batches:
        places, width = batch.places.targets.get("mlm_labels"), batch.targets["mlm_labels"].shape[1]
        if places is None:
            return target_places(labels)
        found.append((places // width + start) * labels.shape[1] + places % width)
        start += len(batch)
    return torch.cat(found)


def _stack(parts: list[Tensor], width: int, value: float = 0) -> Tensor:
    """Rows [n_i, T_i] one below the other, cut or padded to [sum of n_i, width]."""
    return torch.cat([clip_pad(part, (len(part), width), value) for part in parts])


def _widen(x: Tensor, width: int) -> Tensor:
    """[B, T, D] -> [B, width, D] with zeros."""
    return F.pad(x, (0, 0, 0, width - x.shape[1]))


def _append_zeros(x: Tensor, rows: int) -> Tensor:
    return torch.cat([x, x.new_zeros(rows, *x.shape[1:])])


# ---------------------------------------------------------------------------------------------- builders


def build_single(cfg: Config) -> VLBertForPretraining:
    """The module of captions alone, with random weights; reads no file."""
    return _build(cfg, multitask=False)


def build_multitask(cfg: Config) -> VLBertForPretraining:
    """The module of captions and plain text, with random weights; reads no file."""
    return _build(cfg, multitask=True)


def build_attention_vis(cfg: Config) -> VLBertForAttention:
    """The module that shows its attention, with random weights; reads no file."""
    network = cfg.NETWORK
    return VLBertForAttention(
        build_fast_rcnn(cfg), build_vlbert(cfg), _masks_features(network), network.WITH_MVRC_LOSS, True
    )


def _build(cfg: Config, multitask: bool) -> VLBertForPretraining:
    network = cfg.NETWORK
    return VLBertForPretraining(
        build_fast_rcnn(cfg),
        build_vlbert_for_pretraining(cfg, network.WITH_REL_LOSS, network.WITH_MLM_LOSS, network.WITH_MVRC_LOSS),
        _masks_features(network),
        multitask,
        network.MLM_LOSS_NORM_IN_BATCH_FIRST,
        network.MVRC_LOSS_NORM_IN_BATCH_FIRST,
        all_positions=not network.FAST_PATH,
    )


def _masks_features(network: Config) -> bool:
    """Whether masking replaces the features of a region, not its pixels.

    The original's module of captions alone left such regions visible (original 5.18).
    """
    return network.IMAGE_FEAT_PRECOMPUTED or not network.MASK_RAW_PIXELS

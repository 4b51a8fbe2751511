"""VL-BERT for visual commonsense reasoning: four choices as an axis of one batch (original 8.12 to 8.16)."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.config import Config
from common.data.sample import Batch, ModelOutput
from common.errors import ConfigError
from common.nn.bert import init_weights
from common.nn.fast_rcnn import NUM_CLASSES, ROI_SIZE, FastRCNN
from common.nn.heads import RegionHeadTransform, build_classifier
from common.nn.packing import pack
from common.nn.vl_bert import VisualLinguisticBert, VLBertOutput
from common.places import PackedSequences, true_places
from common.weights.build import build_fast_rcnn, build_vlbert

log = logging.getLogger(__name__)


class FoldChoices(nn.Module):
    """Runs a VisualLinguisticBert on [B, C, ...] inputs as B * C rows. `_module` is part of the state-dict keys."""

    def __init__(self, vlbert: VisualLinguisticBert) -> None:
        super().__init__()
        self._module = vlbert

    def forward(self, *inputs: Tensor, sequences: PackedSequences | None = None) -> VLBertOutput:
        return self._module(*(x.flatten(0, 1) for x in inputs), sequences=sequences)


class VLBertForVCR(nn.Module):
    """Scores the choices of `[CLS] query [SEP] choice [SEP]`; the image tower runs once per image.

    image_feature_extractor: None is the blind model: no region enters the sequence, words carry zeros.
    object_word_embed_mode: word of a region: 1 its category's, 2 one for all, 3 the mean of the row's words.
    class_loss_top: None without the object-class regulariser; True for a head on VL-BERT's region states, False on
        the CNN feature (then the extractor has the head). A head on region states needs them in the sequence.
    positive_weight: weight of the right choice in the sigmoid loss; None for a softmax over choices.
    """

    def __init__(
        self,
        image_feature_extractor: FastRCNN | None,
        vlbert: VisualLinguisticBert,
        classifier: nn.Sequential,
        object_word_embed_mode: int = 1,
        class_loss_top: bool | None = None,
        class_loss_weight: float = 1.0,
        class_loss_dropout: float = 0.0,
        answer_loss_weight: float = 1.0,
        positive_weight: float | None = None,
        no_grounding: bool = False,
        no_object_attention: bool = False,
    ) -> None:
        super().__init__()
        sizes = vlbert.sizes
        hidden = sizes.hidden_size
        self.blind = image_feature_extractor is None
        self.object_word_embed_mode = object_word_embed_mode
        self.class_loss_top = class_loss_top
        self.class_loss_weight = class_loss_weight
        self.answer_loss_weight = answer_loss_weight
        self.positive_weight = positive_weight
        self.no_grounding = no_grounding
        self.no_object_attention = no_object_attention
        if image_feature_extractor is not None:
            self.image_feature_extractor = image_feature_extractor
            if object_word_embed_mode in (1, 2):
                rows = NUM_CLASSES if object_word_embed_mode == 1 else 1
                self.object_linguistic_embeddings = nn.Embedding(rows, hidden)
                nn.init.normal_(self.object_linguistic_embeddings.weight, std=0.02)
            if class_loss_top:
                self.cnn_loss_reg = nn.Sequential(
                    RegionHeadTransform(hidden, sizes.hidden_act),
                    nn.Dropout(class_loss_dropout),
                    nn.Linear(hidden, NUM_CLASSES),
                )
                init_weights(self.cnn_loss_reg, sizes.initializer_range)
        elif not sizes.visual_ln:
            # Nothing visual enters a blind model, so its visual scales must not drift under weight decay.
            vlbert.visual_scale_text.requires_grad_(False)
            vlbert.visual_scale_object.requires_grad_(False)
        self.vlbert = FoldChoices(vlbert)
        self.final_mlp = classifier

    @property
    def language_model(self) -> VisualLinguisticBert:
        """The part that language weights are loaded into."""
        return self.vlbert._module

    def forward(self, batch: Batch) -> ModelOutput:
        """Text fields are [B, C, T]; with a target `label` int64 [B] also gives the loss.

        predictions: label_logits [B, C]. losses: ans_loss, and cnn_regularization_loss where configured.
        """
        if batch.text_tags is None or batch.box_classes is None:
            raise ValueError(
                "the batch has no text_tags or no box_classes: VCR needs the tags of words and classes of boxes"
            )
        num_choices, length = batch.text_ids.shape[1:]
        box_mask = batch.box_mask
        if self.blind:
            sizes = self.language_model.sizes
            regions = batch.boxes.new_zeros(*box_mask.shape, sizes.visual_size)
            words = batch.boxes.new_zeros(len(batch), num_choices, box_mask.shape[1], sizes.hidden_size)
            class_loss = None
        else:
            regions, class_loss = self._regions(batch)
            words = self._object_words(batch)
        tags = torch.zeros_like(batch.text_ids) if self.no_grounding else batch.text_tags
        text_visual = regions.gather(1, tags.flatten(1)[..., None].expand(-1, -1, regions.shape[-1]))
        sequences = batch.places.sequences
        if self.blind or self.no_object_attention:
            box_mask, sequences = torch.zeros_like(box_mask), None  # the batch knows the sequences with regions
        encoded = self.vlbert(
            batch.text_ids,
            batch.segment_ids,
            text_visual.unflatten(1, (num_choices, length)),
            batch.text_mask,
            regions[:, None].expand(-1, num_choices, -1, -1),
            words,
            box_mask[:, None].expand(-1, num_choices, -1),
            sequences=sequences,
        )
        logits = self.final_mlp(encoded.pooled).view(-1, num_choices)
        return self._output(logits, encoded.objects, class_loss, batch)

    def _regions(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        out = self.image_feature_extractor(
            batch.image,
            batch.boxes,
            batch.box_mask,
            batch.im_info,
            features=batch.features,
            classes=batch.box_classes,
            box_masks=batch.box_masks,
            image_row=batch.image_row,
            box_places=batch.places.boxes,
        )
        return out.reps, out.class_loss

    def _object_words(self, batch: Batch) -> Tensor:
        """Linguistic part of each region, [B, C, R, H]."""
        num_choices, num_boxes = batch.text_ids.shape[1], batch.boxes.shape[1]
        if self.object_word_embed_mode == 3:
            ids = batch.text_ids
            # Without knowing the vocabulary: a row begins with [CLS] and ends with [SEP].
            cls_id, sep_id = ids[..., :1], ids.gather(-1, batch.text_mask.sum(-1, keepdim=True) - 1)
            mask = batch.text_mask & (ids != cls_id) & (ids != sep_id)
            words = self.language_model.word_embeddings(batch.text_ids).masked_fill(~mask[..., None], 0.0)
            mean = words.sum(2) / mask.sum(2).clamp(min=1)[..., None]  # (B, C, H)
            return mean[:, :, None].expand(-1, -1, num_boxes, -1)
        rows = self.object_linguistic_embeddings.num_embeddings
        assert batch.box_classes is not None
        words = self.object_linguistic_embeddings(batch.box_classes.clamp(0, rows - 1))
        return words[:, None].expand(-1, num_choices, -1, -1)

    def _output(self, logits: Tensor, objects: Tensor, class_loss: Tensor | None, batch: Batch) -> ModelOutput:
        predictions = {"label_logits": logits}
        label = batch.targets.get("label")
        if label is None:
            return ModelOutput(predictions)
        losses = {"ans_loss": self._answer_loss(logits, label)}
        loss = losses["ans_loss"] * self.answer_loss_weight
        if self.positive_weight is not None:
            # An output of the 2020 release, which the reference numbers contain.
            predictions["positive_fraction"] = F.one_hot(label, logits.shape[1]).float().mean()
        if self.class_loss_top:
            assert batch.box_classes is not None
            boxes = true_places(batch.box_mask) if batch.places.boxes is None else batch.places.boxes  # (K,)
            places = _with_choices(boxes, logits.shape[1], batch.box_mask.shape[1])  # (C * K,)
            classes = batch.box_classes[:, None].expand(-1, logits.shape[1], -1).flatten(0, 1)  # (B * C, R)
            class_loss = F.cross_entropy(self.cnn_loss_reg(pack(objects, places)).float(), pack(classes, places))
        if class_loss is not None:
            losses["cnn_regularization_loss"] = class_loss
            loss = loss + class_loss * self.class_loss_weight
        return ModelOutput(predictions, loss, losses)

    def _answer_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        if self.positive_weight is None:
            return F.cross_entropy(logits.float(), label)
        target = F.one_hot(label, logits.shape[1]).float()
        weight = torch.where(target == 1, self.positive_weight, 1.0)
        scale = (self.positive_weight + 1.0) / (2.0 * self.positive_weight)
        return scale * F.binary_cross_entropy_with_logits(logits.float(), target, weight)


def _with_choices(places: Tensor, choices: int, width: int) -> Tensor:
    """Indices of [B * width], in rising order, as those of [B * choices * width] for every choice, in rising order."""
    sample, column = places // width, places % width
    choice = torch.arange(choices, device=places.device)[:, None]
    return ((sample * choices + choice) * width + column).flatten().sort().values


def build_model(cfg: Config) -> VLBertForVCR:
    """The module of a VCR config with random weights; reads no file. Raises ConfigError for contradicting keys."""
    network = cfg.NETWORK
    regulariser = network.ENABLE_CNN_REG_LOSS
    if regulariser and (network.BLIND or (network.CNN_LOSS_TOP and network.NO_OBJ_ATTENTION)):
        log.warning("NETWORK.ENABLE_CNN_REG_LOSS has no effect: no region enters the sequence")
        regulariser = False
    if not network.VLBERT.with_pooler:
        raise ConfigError("NETWORK.VLBERT.with_pooler false: VCR classifies the pooled state and needs it true")
    if network.CLASSIFIER_TYPE not in ("1fc", "2fc"):
        raise ConfigError(f"NETWORK.CLASSIFIER_TYPE {network.CLASSIFIER_TYPE!r}: VCR has 1fc and 2fc")
    classifier = build_classifier(
        network.CLASSIFIER_TYPE,
        network.VLBERT.hidden_size,
        1,
        network.CLASSIFIER_HIDDEN_SIZE,
        network.CLASSIFIER_DROPOUT,
    )
    bottom = regulariser and not network.CNN_LOSS_TOP
    _check_regions(cfg, bottom)
    return VLBertForVCR(
        None if network.BLIND else build_fast_rcnn(cfg, class_regulariser=bottom),
        build_vlbert(cfg),
        classifier,
        object_word_embed_mode=network.VLBERT.object_word_embed_mode,
        class_loss_top=network.CNN_LOSS_TOP if regulariser else None,
        class_loss_weight=network.CNN_LOSS_WEIGHT,
        class_loss_dropout=network.CNN_REG_DROPOUT,
        answer_loss_weight=network.ANS_LOSS_WEIGHT,
        positive_weight=network.CLASSIFIER_SIGMOID_LOSS_POSITIVE_WEIGHT if network.CLASSIFIER_SIGMOID else None,
        no_grounding=network.NO_GROUNDING,
        no_object_attention=network.NO_OBJ_ATTENTION,
    )


def _check_regions(cfg: Config, bottom: bool) -> None:
    """Raises ConfigError where pixels or features cannot give what is asked. bottom: object classes from the CNN."""
    network, mask_size = cfg.NETWORK, cfg.DATASET.MASK_SIZE
    if network.BLIND:
        return
    if network.IMAGE_FEAT_PRECOMPUTED:
        if bottom:
            raise ConfigError(
                "NETWORK.CNN_LOSS_TOP false trains the CNN, which NETWORK.IMAGE_FEAT_PRECOMPUTED leaves out: expected "
                "CNN_LOSS_TOP true or ENABLE_CNN_REG_LOSS false"
            )
        return
    size = ROI_SIZE if network.IMAGE_C5_DILATED else ROI_SIZE // 2
    if mask_size != size:
        raise ConfigError(
            f"DATASET.MASK_SIZE {mask_size}: expected {size}, the output of C5 with NETWORK.IMAGE_C5_DILATED "
            f"{network.IMAGE_C5_DILATED}"
        )

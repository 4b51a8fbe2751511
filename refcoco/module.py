"""VL-BERT for referring expressions: a score for every region (original 10.8 to 10.10)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from common.config import Config
from common.data.sample import Batch, ModelOutput
from common.nn.fast_rcnn import FastRCNN
from common.nn.heads import RegionHeadTransform, init_classifier
from common.nn.packing import pack
from common.nn.vl_bert import VisualLinguisticBert
from common.places import true_places
from common.weights.build import build_fast_rcnn, build_vlbert

PADDED_LOGIT = -10000.0


class VLBertForReferring(nn.Module):
    """Scores regions against `[CLS] expression [SEP]`.

    score_padding: leave the head's value on padded regions, as the original did; such a region can then win the argmax
    (original 10.10). By default padded regions get -10000.
    """

    def __init__(
        self,
        image_feature_extractor: FastRCNN,
        vlbert: VisualLinguisticBert,
        dropout: float = 0.0,
        score_padding: bool = False,
    ) -> None:
        super().__init__()
        sizes = vlbert.sizes
        self.score_padding = score_padding
        self.image_feature_extractor = image_feature_extractor
        self.object_linguistic_embeddings = nn.Embedding(1, sizes.hidden_size)
        nn.init.normal_(self.object_linguistic_embeddings.weight, std=sizes.initializer_range)
        self.vlbert = vlbert
        self.final_mlp = init_classifier(
            nn.Sequential(
                RegionHeadTransform(sizes.hidden_size, sizes.hidden_act),
                nn.Dropout(dropout),
                nn.Linear(sizes.hidden_size, 1),
            )
        )

    @property
    def language_model(self) -> VisualLinguisticBert:
        """The part that language weights are loaded into."""
        return self.vlbert

    def forward(self, batch: Batch) -> ModelOutput:
        """Needs boxes, images and text; a target `label` [B, R] (1 where a box covers the referent) gives the loss.

        predictions: label_logits [B, R]; pred_boxes [B, 4], the best region, xyxy in pixels of the original image.
        losses: cls_loss.
        """
        regions = self.image_feature_extractor(
            batch.image,
            batch.boxes,
            batch.box_mask,
            batch.im_info,
            features=batch.features,
            image_row=batch.image_row,
            box_places=batch.places.boxes,
        ).reps
        object_word = self.object_linguistic_embeddings(batch.text_ids.new_zeros(1))  # (1, H), one for all regions
        encoded = self.vlbert(
            batch.text_ids,
            batch.segment_ids,
            regions[:, :1].expand(-1, batch.text_ids.shape[1], -1),
            batch.text_mask,
            regions,
            object_word.expand(*batch.box_mask.shape, -1),
            batch.box_mask,
            sequences=batch.places.sequences,
        )
        logits = self.final_mlp(encoded.objects).squeeze(-1)  # (B, R)
        if not self.score_padding:
            logits = logits.masked_fill(~batch.box_mask, PADDED_LOGIT)
        predictions = {"label_logits": logits, "pred_boxes": _best_boxes(batch, logits)}
        label = batch.targets.get("label")
        if label is None:
            return ModelOutput(predictions)
        places = true_places(batch.box_mask) if batch.places.boxes is None else batch.places.boxes
        loss = F.binary_cross_entropy_with_logits(pack(logits, places).float(), pack(label, places).float())
        return ModelOutput(predictions, loss, {"cls_loss": loss})


def _best_boxes(batch: Batch, logits: Tensor) -> Tensor:
    best = logits.argmax(1)[:, None, None].expand(-1, 1, 4)
    return batch.boxes.gather(1, best).squeeze(1) / batch.im_info[:, 2:4].repeat(1, 2)


def build_model(cfg: Config) -> VLBertForReferring:
    """The module of a RefCOCO+ config with random weights; reads no file."""
    network = cfg.NETWORK
    return VLBertForReferring(
        build_fast_rcnn(cfg), build_vlbert(cfg), network.CLASSIFIER_DROPOUT, network.SCORE_PADDING
    )

"""VL-BERT for visual question answering (original 9.13 to 9.16)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.config import Config
from common.data.sample import Batch, ModelOutput
from common.nn.fast_rcnn import FastRCNN
from common.nn.heads import build_classifier
from common.nn.losses import binary_cross_entropy_sum
from common.nn.vl_bert import VisualLinguisticBert
from common.weights.build import build_fast_rcnn, build_vlbert


class VLBertForVQA(nn.Module):
    """Classifies the answer at the [MASK] of `[CLS] question [SEP] [MASK] [SEP]`.

    classifier: [B, H] -> [B, V]. no_grounding: words carry no visual feature.
    """

    def __init__(
        self,
        image_feature_extractor: FastRCNN,
        vlbert: VisualLinguisticBert,
        classifier: nn.Sequential,
        no_grounding: bool = False,
    ) -> None:
        super().__init__()
        self.no_grounding = no_grounding
        self.image_feature_extractor = image_feature_extractor
        self.object_linguistic_embeddings = nn.Embedding(1, vlbert.sizes.hidden_size)
        nn.init.normal_(self.object_linguistic_embeddings.weight, std=0.02)
        self.vlbert = vlbert
        self.final_mlp = classifier

    @property
    def language_model(self) -> VisualLinguisticBert:
        """The part that language weights are loaded into."""
        return self.vlbert

    def forward(self, batch: Batch) -> ModelOutput:
        """Needs boxes, features or images, and text; with a target `label` [B, V] of soft scores also gives the loss.

        predictions: label_logits [B, V]. losses: ans_loss.
        """
        regions = self.image_feature_extractor(
            batch.image,
            batch.boxes,
            batch.box_mask,
            batch.im_info,
            features=batch.features,
            image_row=batch.image_row,
            box_places=batch.places.boxes,
        ).reps  # (B, R, D)
        text_visual = regions[:, :1].expand(-1, batch.text_ids.shape[1], -1)  # every word looks at the first box
        if self.no_grounding:
            text_visual = torch.zeros_like(text_visual)
        object_word = self.object_linguistic_embeddings(batch.text_ids.new_zeros(1))  # (1, H), one for all regions
        encoded = self.vlbert(
            batch.text_ids,
            batch.segment_ids,
            text_visual,
            batch.text_mask,
            regions,
            object_word.expand(*batch.box_mask.shape, -1),
            batch.box_mask,
            sequences=batch.places.sequences,
        )
        answer = batch.text_mask.sum(1) - 2  # [MASK] is the last word but one
        logits = self.final_mlp(encoded.text[torch.arange(answer.shape[0], device=answer.device), answer])
        return self._output(logits, batch.targets.get("label"))

    @staticmethod
    def _output(logits: Tensor, label: Tensor | None) -> ModelOutput:
        if label is None:
            return ModelOutput({"label_logits": logits})
        loss = binary_cross_entropy_sum(logits, label)
        return ModelOutput({"label_logits": logits}, loss, {"ans_loss": loss})


def build_model(cfg: Config) -> VLBertForVQA:
    """The module of a VQA config with random weights; reads no file."""
    network = cfg.NETWORK
    classifier = build_classifier(
        network.CLASSIFIER_TYPE,
        network.VLBERT.hidden_size,
        cfg.DATASET.ANSWER_VOCAB_SIZE,
        network.CLASSIFIER_HIDDEN_SIZE,
        network.CLASSIFIER_DROPOUT,
        network.VLBERT.hidden_act,
    )
    return VLBertForVQA(build_fast_rcnn(cfg), build_vlbert(cfg), classifier, network.NO_GROUNDING)

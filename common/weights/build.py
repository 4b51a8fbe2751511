"""From the config to the parts that every task shares: the one place where config keys meet constructor arguments."""

from __future__ import annotations

from dataclasses import fields

from common.config import Config
from common.errors import ConfigError
from common.nn.cpu.bert import FastEncoder
from common.nn.cpu.dropout import FastDropout
from common.nn.cpu.fast_rcnn import SharingFastRCNN
from common.nn.cpu.resnet import FastBottleneck, FastResNetC4
from common.nn.fast_rcnn import FastRCNN
from common.nn.parts import PLAIN, Parts
from common.nn.vl_bert import VisualLinguisticBert, VisualLinguisticBertForPretraining, VLBertSizes

FAST = Parts(encoder=FastEncoder, backbone=FastResNetC4, block=FastBottleneck, dropout=FastDropout)


def parts(cfg: Config) -> Parts:
    """The classes that the model is built of: the faster ones with NETWORK.FAST_PATH, else the plain ones."""
    return FAST if cfg.NETWORK.FAST_PATH else PLAIN


def vlbert_sizes(cfg: Config) -> VLBertSizes:
    """The numbers of the section NETWORK.VLBERT."""
    section = cfg.NETWORK.VLBERT
    return VLBertSizes(**{f.name: section[f.name] for f in fields(VLBertSizes)})


def build_vlbert(cfg: Config) -> VisualLinguisticBert:
    """The language side of a fine-tuning task, with random weights."""
    return VisualLinguisticBert(vlbert_sizes(cfg), parts(cfg), cfg.NETWORK.CHECKPOINT_ENCODER)


def build_vlbert_for_pretraining(
    cfg: Config, with_relationship: bool, with_mlm: bool, with_mvrc: bool
) -> VisualLinguisticBertForPretraining:
    """The same with pretraining heads, of which those that are switched off are missing."""
    section = cfg.NETWORK.VLBERT
    return VisualLinguisticBertForPretraining(
        vlbert_sizes(cfg),
        with_relationship,
        with_mlm,
        with_mvrc,
        section.visual_region_classes,
        section.pos_embedding_frozen,
        parts(cfg),
        cfg.NETWORK.CHECKPOINT_ENCODER,
    )


def build_fast_rcnn(cfg: Config, class_regulariser: bool = False, final_dim: int | None = None) -> FastRCNN:
    """The FastRCNN of the section NETWORK, with random weights. final_dim: default NETWORK.IMAGE_FINAL_DIM.

    Raises ConfigError for regions in chunks with batch norms that train.
    """
    network = cfg.NETWORK
    if (network.ROI_CHUNK or network.CHECKPOINT_ROIS) and not network.IMAGE_FROZEN_BN:
        raise ConfigError("NETWORK.ROI_CHUNK and CHECKPOINT_ROIS need NETWORK.IMAGE_FROZEN_BN true")
    kind = SharingFastRCNN if network.FAST_PATH else FastRCNN
    return kind(
        num_layers=network.IMAGE_NUM_LAYERS,
        dilated_c5=network.IMAGE_C5_DILATED,
        stride_in_1x1=network.IMAGE_STRIDE_IN_1x1,
        frozen_bn=network.IMAGE_FROZEN_BN,
        frozen_stages=network.IMAGE_FROZEN_BACKBONE_STAGES,
        precomputed=network.IMAGE_FEAT_PRECOMPUTED,
        final_dim=network.IMAGE_FINAL_DIM if final_dim is None else final_dim,
        semantic=network.IMAGE_SEMANTIC,
        class_regulariser=class_regulariser,
        roi_chunk=network.ROI_CHUNK,
        recompute_rois=network.CHECKPOINT_ROIS,
        parts=parts(cfg),
    )

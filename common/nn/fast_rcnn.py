"""Fast R-CNN region features: what each box shows and where it is (paper §3.2; original 2.29 to 2.36)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from common.boxes import FEATURE_DIM, coordinate_embedding
from common.nn import recompute
from common.nn.packing import pack, real_places, unpack
from common.nn.parts import PLAIN, Parts
from common.nn.resnet import build_c5, freeze
from common.places import true_places

NUM_CLASSES = 81  # COCO categories and background
CLASS_EMBEDDING_DIM = 128
ROI_SIZE = 14
STRIDE = 16


class RegionOutput(NamedTuple):
    """reps: region embeddings [B, R, D], zero where the box mask is False. class_loss: of the regulariser, or None."""

    reps: Tensor
    class_loss: Tensor | None = None


class FastRCNN(nn.Module):
    """Embeds regions, end to end from pixels or from precomputed features.

    num_layers: ResNet depth 50, 101 or 152. dilated_c5, stride_in_1x1: variants of the RoI head and of the bottlenecks.
    frozen_bn: batch norms use running statistics and do not train. frozen_stages: parts that do not train, 1 the stem,
    2..4 layer1..layer3, 5 the RoI head. precomputed: no CNN, `features` come with the batch. final_dim: width D of a
    region embedding. semantic: concatenate an embedding of the box's class. class_regulariser: predict that class from
    the appearance. roi_chunk: number of regions in the RoI head at a time, 0 for all. recompute_rois: in training,
    compute the RoI head again for the backward pass, chunk by chunk, instead of keeping its activations.
    parts: classes of the ResNet and of the dropout.
    State-dict keys are the original's; the RoI head is listed under two names (original 2.20).
    Raises ValueError for chunks with batch norms that train.
    """

    def __init__(
        self,
        num_layers: int = 101,
        dilated_c5: bool = True,
        stride_in_1x1: bool = True,
        frozen_bn: bool = True,
        frozen_stages: Sequence[int] = (1, 2),
        precomputed: bool = False,
        final_dim: int = 768,
        semantic: bool = False,
        class_regulariser: bool = False,
        roi_chunk: int = 0,
        recompute_rois: bool = False,
        parts: Parts = PLAIN,
    ) -> None:
        super().__init__()
        if (roi_chunk or recompute_rois) and not frozen_bn:
            raise ValueError("regions in chunks need frozen batch norms, whose statistics are those of all regions")
        self.roi_chunk, self.recompute_rois = roi_chunk, recompute_rois
        self.precomputed = precomputed
        if not precomputed:
            self.backbone = parts.backbone(num_layers, stride_in_1x1, frozen_bn, parts.block)
        self.object_embed = nn.Embedding(NUM_CLASSES, CLASS_EMBEDDING_DIM) if semantic else None
        self.regularizing_predictor: nn.Linear | None = None
        if not precomputed:
            self.roi_head_feature_extractor = build_c5(dilated_c5, stride_in_1x1, frozen_bn, parts.block)
            pool = nn.AvgPool2d(ROI_SIZE if dilated_c5 else ROI_SIZE // 2, stride=1)
            self.head = nn.Sequential(self.roi_head_feature_extractor, pool, nn.Flatten())
            if class_regulariser:
                self.regularizing_predictor = nn.Linear(FEATURE_DIM, NUM_CLASSES)
            for stage in frozen_stages:
                freeze([self.roi_head_feature_extractor] if stage == 5 else self.backbone.stage(stage))
        in_dim = 2 * FEATURE_DIM + (CLASS_EMBEDDING_DIM if semantic else 0)
        self.obj_downsample = nn.Sequential(parts.dropout(0.1), nn.Linear(in_dim, final_dim), nn.ReLU())

    def forward(
        self,
        images: Tensor | None,
        boxes: Tensor,
        box_mask: Tensor,
        im_info: Tensor,
        features: Tensor | None = None,
        classes: Tensor | None = None,
        box_masks: Tensor | None = None,
        masked: Tensor | None = None,
        mask_feature: Tensor | None = None,
        image_row: Tensor | None = None,
        box_places: Tensor | None = None,
    ) -> RegionOutput:
        """Embed the regions of B samples; K of the boxes are real.

        images: [P, 3, h, w] normalised, None in precomputed mode. image_row: int64 [B], the row of `images` of each
        sample, None where sample b has images[b].
        boxes: [B, R, 4] xyxy in pixels of the resized image. box_mask: bool [B, R].
        im_info: [B, >= 2], width and height of the resized image.
        features: [B, R, 2048], precomputed; the CNN does not run where they are given.
        classes: [B, R], class of each box. box_masks: [B, R, S, S], instance masks on the output grid of the RoI head.
        masked: bool [B, R], regions whose appearance is replaced by mask_feature [2048].
        box_places: int64 [K], the real boxes as indices of [B * R]; None to read them from box_mask.
        Raises ValueError where an input that the configuration needs is missing.
        """
        places = real_places(box_mask) if box_places is None else box_places  # (K,)
        labels = pack(classes, places).long() if classes is not None else None  # (K,)
        if features is not None:
            appearance = pack(features, places)  # (K, 2048)
        else:
            appearance = self.region_features(self._pixels(images), boxes, box_mask, box_masks, image_row, places)
        class_loss = self._class_loss(appearance, labels)
        if masked is not None and mask_feature is not None:
            is_masked = pack(masked, places)[:, None]  # (K, 1)
            appearance = torch.where(is_masked, mask_feature.to(appearance.dtype), appearance)
        sizes = pack(im_info[:, None, :2].expand(-1, boxes.shape[1], -1), places)  # (K, 2)
        geometry = coordinate_embedding(pack(boxes, places), sizes).flatten(1)  # (K, 2048)
        content = [geometry.to(appearance.dtype), appearance, *self._class_embedding(appearance, labels)]
        reps = self.obj_downsample(torch.cat(content, dim=1))  # (K, D)
        return RegionOutput(unpack(reps, box_mask, places), class_loss)

    def region_features(
        self,
        images: Tensor,
        boxes: Tensor,
        box_mask: Tensor,
        box_masks: Tensor | None = None,
        image_row: Tensor | None = None,
        box_places: Tensor | None = None,
    ) -> Tensor:
        """Appearance of the K real boxes in row-major order: [K, 2048]. Arguments as in forward.

        Raises ValueError for a batch without a real box.
        """
        places = true_places(box_mask) if box_places is None else box_places  # (K,)
        if not len(places):
            raise ValueError("no real box in the batch")
        feature_map = self.backbone(images)  # (P, 1024, h / 16, w / 16)
        rois = roi_rows(boxes, places, image_row)  # (K, 5)
        masks = None if box_masks is None else pack(box_masks, places)  # (K, S, S)
        return self.roi_features(feature_map, rois, masks, shared=image_row is not None)

    def roi_features(self, feature_map: Tensor, rois: Tensor, masks: Tensor | None, shared: bool) -> Tensor:
        """RoI features, averaged: [P, 1024, h / 16, w / 16], rois [K, 5], masks [K, S, S] -> [K, 2048].

        shared: whether several samples may have the same RoI.
        """
        size = self.roi_chunk or len(rois)
        again = self.recompute_rois and self.training
        found = []
        for start in range(0, len(rois), size):
            at = slice(start, start + size)
            chunk = (feature_map, rois[at], None if masks is None else masks[at])
            found.append(recompute.call(self._roi_head, *chunk, again=again))
        return torch.cat(found)

    def _roi_head(self, feature_map: Tensor, rois: Tensor, masks: Tensor | None) -> Tensor:
        """As roi_features, all RoIs at once."""
        regions = roi_align_features(feature_map, rois).to(feature_map.dtype)  # (K, 1024, 14, 14)
        grid = self.roi_head_feature_extractor(regions)  # (K, 2048, S, S)
        if masks is not None:
            grid = grid * masks[:, None].to(grid.dtype)
        _, pool, flatten = self.head
        return flatten(pool(grid))  # (K, 2048)

    def _pixels(self, images: Tensor | None) -> Tensor:
        """The images of a batch without features."""
        if self.precomputed:
            raise ValueError("NETWORK.IMAGE_FEAT_PRECOMPUTED is true but the batch has no region features")
        if images is None:
            raise ValueError("NETWORK.IMAGE_FEAT_PRECOMPUTED is false but the batch has no images")
        return images

    def _class_loss(self, appearance: Tensor, labels: Tensor | None) -> Tensor | None:
        """Cross entropy of the classes [K] that are predicted from the appearance [K, 2048]."""
        if self.regularizing_predictor is None:
            return None
        if labels is None:
            raise ValueError("NETWORK.ENABLE_CNN_REG_LOSS needs the class of each box, and this task has none")
        return F.cross_entropy(self.regularizing_predictor(appearance).float(), labels)

    def _class_embedding(self, appearance: Tensor, labels: Tensor | None) -> list[Tensor]:
        """The embedding [K, 128] of the classes [K] in the dtype of the appearance, nothing where there is none."""
        if self.object_embed is None:
            return []
        if labels is None:
            raise ValueError("NETWORK.IMAGE_SEMANTIC needs the class of each box, and this task has none")
        return [self.object_embed(labels).to(appearance.dtype)]


def roi_rows(boxes: Tensor, places: Tensor, image_row: Tensor | None = None) -> Tensor:
    """K of the boxes [B, R, 4] in RoIAlign's form: float32 [K, 5], the row of the image and xyxy.

    places: int64 [K], indices of [B * R].
    """
    sample = places // boxes.shape[1]  # (K,)
    image = sample if image_row is None else image_row[sample]
    return torch.cat([image[:, None].float(), pack(boxes, places).float()], dim=1)


def roi_align_features(feature_map: Tensor, rois: Tensor) -> Tensor:
    """RoIAlign in float32: [P, 1024, h / 16, w / 16], rois [K, 5] of image and xyxy in its pixels ->
    [K, 1024, 14, 14].

    One sample a bin, no half-pixel shift, sides of at least one cell: the convention of the published weights
    (original 2.31).
    """
    with torch.autocast(feature_map.device.type, enabled=False):
        return roi_align(feature_map.float(), rois, ROI_SIZE, 1.0 / STRIDE, sampling_ratio=1, aligned=False)

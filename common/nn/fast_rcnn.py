"""Fast R-CNN region features: what each box shows and where it is (paper §3.2; spec 02 §6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from common.boxes import FEATURE_DIM, coordinate_embedding
from common.nn import recompute
from common.nn.dropout import Dropout
from common.nn.padding import real_rows, rows_back
from common.nn.resnet import ResNetC4, build_c5, freeze

NUM_CLASSES = 81  # COCO categories and background
CLASS_EMBEDDING_DIM = 128
ROI_SIZE = 14
STRIDE = 16


class RegionOutput(NamedTuple):
    """reps: [B, R, D] region embeddings, raw: [B, R, 2048] appearance features; zero where the box mask is False.
    class_logits [K, 81], class_labels [K], class_loss: of the regulariser, None without it."""

    reps: Tensor
    raw: Tensor
    class_logits: Tensor | None = None
    class_labels: Tensor | None = None
    class_loss: Tensor | None = None


class FastRCNN(nn.Module):
    """Region feature extractor, end to end from pixels or on precomputed features.

    num_layers: ResNet depth 50, 101 or 152. dilated_c5, stride_in_1x1: variants of the RoI head and of the bottlenecks.
    frozen_bn: batch norms use running statistics and do not train. frozen_stages: 1 is the stem, 2..4 layer1..layer3,
    5 the
    RoI head. precomputed: no CNN; `features` come with the batch. final_dim: width D of a region embedding.
    semantic: concatenate an embedding of the box's class. class_regulariser: predict that class from the CNN feature.
    roi_chunk: how many regions go through the RoI head at a time, 0 for all. recompute_rois: in training keep no
    activations of the RoI head, but compute each chunk again for the backward pass.
    State-dict keys are the original's; the RoI head is listed under two names (spec 02 §10.3).
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
    ) -> None:
        super().__init__()
        if (roi_chunk or recompute_rois) and not frozen_bn:
            raise ValueError("regions in chunks need frozen batch norms, whose statistics are those of all regions")
        self.roi_chunk, self.recompute_rois = roi_chunk, recompute_rois
        self.precomputed = precomputed
        if not precomputed:
            self.backbone = ResNetC4(num_layers, stride_in_1x1, frozen_bn)
        self.object_embed = nn.Embedding(NUM_CLASSES, CLASS_EMBEDDING_DIM) if semantic else None
        self.regularizing_predictor: nn.Linear | None = None
        if not precomputed:
            self.roi_head_feature_extractor = build_c5(dilated_c5, stride_in_1x1, frozen_bn)
            pool = nn.AvgPool2d(ROI_SIZE if dilated_c5 else ROI_SIZE // 2, stride=1)
            self.head = nn.Sequential(self.roi_head_feature_extractor, pool, nn.Flatten())
            if class_regulariser:
                self.regularizing_predictor = nn.Linear(FEATURE_DIM, NUM_CLASSES)
            for stage in frozen_stages:
                freeze([self.roi_head_feature_extractor] if stage == 5 else self.backbone.stage(stage))
        in_dim = 2 * FEATURE_DIM + (CLASS_EMBEDDING_DIM if semantic else 0)
        self.obj_downsample = nn.Sequential(Dropout(0.1), nn.Linear(in_dim, final_dim), nn.ReLU())

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
    ) -> RegionOutput:
        """Embed regions.

        images: [P, 3, h, w] normalised, None in precomputed mode. image: int64 [B], the image of each row of boxes;
        None where there is one image a row. An image, and a box that several rows have, is computed once.
        boxes: [B, R, 4] xyxy in pixels of the resized image.
        box_mask: bool [B, R]. im_info: [B, >= 2], width and height of the resized image. features: [B, R, 2048],
        precomputed; where they are given, the CNN does not run.
        classes: [B, R] class of each box. box_masks: [B, R, S, S] instance masks on the RoI head's output.
        masked: bool [B, R], regions whose appearance is replaced by mask_feature [2048].
        Raises ValueError where an input that the configuration needs is missing.
        """
        labels = real_rows(classes, box_mask).long() if classes is not None else None
        raw = self._appearance(images, boxes, box_mask, features, box_masks, image_row)  # (K, 2048)
        logits, loss = None, None
        if self.regularizing_predictor is not None:
            if labels is None:
                raise ValueError("NETWORK.ENABLE_CNN_REG_LOSS needs the class of each box, and this task has none")
            logits = self.regularizing_predictor(raw)
            loss = F.cross_entropy(logits.float(), labels)
        if masked is not None and mask_feature is not None:
            raw = torch.where(real_rows(masked, box_mask)[:, None], mask_feature.to(raw.dtype), raw)
        content = raw
        if self.object_embed is not None:
            if labels is None:
                raise ValueError("NETWORK.IMAGE_SEMANTIC needs the class of each box, and this task has none")
            content = torch.cat([raw, self.object_embed(labels).to(raw.dtype)], dim=1)
        sizes = real_rows(im_info[:, None, :2].expand(-1, boxes.shape[1], -1), box_mask)
        place = coordinate_embedding(real_rows(boxes, box_mask), sizes).flatten(1)
        reps = self.obj_downsample(torch.cat([place.to(content.dtype), content], dim=1))
        return RegionOutput(rows_back(reps, box_mask), rows_back(raw, box_mask), logits, labels, loss)

    def region_features(
        self,
        images: Tensor,
        boxes: Tensor,
        box_mask: Tensor,
        box_masks: Tensor | None = None,
        image_row: Tensor | None = None,
    ) -> Tensor:
        """Appearance features of the K real boxes, row-major: -> [K, 2048]. Arguments as in forward."""
        if not box_mask.any():
            raise ValueError("no real box in the batch")
        # Channels last is what convolution kernels of CPUs and GPUs like best; the values are the same.
        feature_map = self.backbone(images.contiguous(memory_format=torch.channels_last))
        rois, masks = roi_rows(boxes, box_mask, image_row), None if box_masks is None else box_masks[box_mask]
        shared = None
        if len(images) < len(boxes):
            rois, masks, shared = _distinct(rois, masks)
        size = self.roi_chunk or len(rois)
        again = self.recompute_rois and self.training
        parts = [
            recompute.call(
                self._roi_head, feature_map, rois[at], None if masks is None else masks[at], images.dtype, again=again
            )
            for at in (slice(start, start + size) for start in range(0, len(rois), size))
        ]
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        return found if shared is None else found[shared]

    def _roi_head(self, feature_map: Tensor, rois: Tensor, masks: Tensor | None, dtype: torch.dtype) -> Tensor:
        """[K, 2048] of rois [K, 5] with their masks [K, S, S]."""
        regions = roi_align_features(feature_map, rois).to(dtype, memory_format=torch.channels_last)
        grid = self.roi_head_feature_extractor(regions)
        if masks is not None:
            grid = grid * masks[:, None].to(grid.dtype)
        return self.head[2](self.head[1](grid))

    def _appearance(
        self,
        images: Tensor | None,
        boxes: Tensor,
        box_mask: Tensor,
        features: Tensor | None,
        box_masks: Tensor | None,
        image_row: Tensor | None,
    ) -> Tensor:
        if features is not None:
            return real_rows(features, box_mask)
        if self.precomputed:
            raise ValueError("NETWORK.IMAGE_FEAT_PRECOMPUTED is true but the batch has no region features")
        if images is None:
            raise ValueError("NETWORK.IMAGE_FEAT_PRECOMPUTED is false but the batch has no images")
        return self.region_features(images, boxes, box_mask, box_masks, image_row)


def roi_rows(boxes: Tensor, box_mask: Tensor, image_row: Tensor | None = None) -> Tensor:
    """The K real boxes as RoIAlign wants them: float32 [K, 5], the image (by default the row) and xyxy."""
    image = box_mask.nonzero()[:, 0]
    image = image if image_row is None else image_row[image]
    return torch.cat([image[:, None].float(), boxes[box_mask].float()], dim=1)


def roi_align_features(feature_map: Tensor, rois: Tensor) -> Tensor:
    """RoIAlign in float32: [P, 1024, h/16, w/16], [K, 5] of image and xyxy in its pixels -> [K, 1024, 14, 14].

    One sample a bin, no half-pixel shift, sides of at least one cell: the convention the weights were trained with
    (spec 02 §6.4).
    """
    with torch.autocast(feature_map.device.type, enabled=False):
        return roi_align(feature_map.float(), rois, ROI_SIZE, 1.0 / STRIDE, sampling_ratio=1, aligned=False)


def _distinct(rois: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Rows [K, 5] and masks [K, S, S] without repetitions, n of them, and int64 [K], which of them each row was."""
    rows = rois if masks is None else torch.cat([rois, masks.flatten(1).float()], dim=1)
    rows, inverse = torch.unique(rows, dim=0, return_inverse=True)
    return rows[:, :5], None if masks is None else rows[:, 5:].unflatten(1, masks.shape[1:]), inverse

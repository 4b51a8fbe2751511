"""The Visual Genome detector ("bottom-up attention"): Faster R-CNN with a ResNet C4 trunk and an attribute head."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_pool

from common.boxes import FEATURE_DIM
from common.detect.proposals import NUM_ANCHORS, STRIDE, Proposals, find_proposals
from common.nn.parts import PLAIN, Parts
from common.nn.resnet import build_c5

MAP_CHANNELS = 1024
ROI_SIZE = 14


class RegionScores(NamedTuple):
    """What the heads compute for R regions, float32.

    classes: [R, classes] and attributes: [R, attributes], probabilities, background and "no attribute" in column 0.
    deltas: [R, 4 * classes], dx, dy, dw, dh for each class.
    """

    classes: Tensor
    attributes: Tensor
    deltas: Tensor


class ProposalNetwork(nn.Module):
    """From the feature map [1, 1024, h, w] to probabilities [1, 24, h, w] and deltas [1, 48, h, w], both float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(MAP_CHANNELS, 512, 3, padding=1)
        self.objectness = nn.Conv2d(512, 2 * NUM_ANCHORS, 1)
        self.deltas = nn.Conv2d(512, 4 * NUM_ANCHORS, 1)

    def forward(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.conv(feature_map))  # (1, 512, h, w)
        scores = self.objectness(hidden).float()
        # Channel a is the background of anchor a, channel 12 + a its object.
        prob = scores.unflatten(1, (2, NUM_ANCHORS)).softmax(dim=1).flatten(1, 2)
        return prob, self.deltas(hidden).float()


class VisualGenomeDetector(nn.Module):
    """The network for one image at a time (original 12.4 and 12.6 to 12.9).

    num_layers: ResNet depth 50, 101 or 152. num_proposals: boxes of an image. num_candidates: boxes that enter the NMS
    before. num_classes, num_attributes: with background and "no attribute". embedding_dim: of the class in the
    attribute head. hidden_dim: of the attribute head. roi_chunk: number of regions in the RoI head at a time.
    parts: classes of the ResNet.
    """

    def __init__(
        self,
        num_layers: int = 101,
        num_proposals: int = 300,
        num_candidates: int = 6000,
        num_classes: int = 1601,
        num_attributes: int = 401,
        embedding_dim: int = 256,
        hidden_dim: int = 512,
        roi_chunk: int = 64,
        parts: Parts = PLAIN,
    ) -> None:
        super().__init__()
        self.num_proposals, self.num_candidates, self.roi_chunk = num_proposals, num_candidates, roi_chunk
        self.backbone = parts.backbone(num_layers, stride_in_1x1=True, block=parts.block, caffe_pool=True)
        self.rpn = ProposalNetwork()
        self.head = build_c5(dilated=True, stride_in_1x1=True, frozen_bn=True, block=parts.block)
        self.cls_score = nn.Linear(FEATURE_DIM, num_classes)
        self.bbox_pred = nn.Linear(FEATURE_DIM, 4 * num_classes)
        self.cls_embedding = nn.Embedding(num_classes, embedding_dim)
        self.fc_attr = nn.Linear(FEATURE_DIM + embedding_dim, hidden_dim)
        self.attr_score = nn.Linear(hidden_dim, num_attributes)

    def propose(self, feature_map: Tensor, size: tuple[int, int], scale: float) -> Proposals:
        """The proposals of an image. feature_map: `backbone` of its network input, whose width and height are `size`.

        scale: pixels of the network input for one pixel of the image.
        """
        prob, deltas = self.rpn(feature_map)
        return find_proposals(prob, deltas, size, scale, self.num_candidates, self.num_proposals)

    def pool(self, feature_map: Tensor, boxes: Tensor) -> Tensor:
        """The region features ("pool5") float32 [R, 2048] of boxes [R, 4] in pixels of the network input."""
        found = [self._pool_chunk(feature_map, chunk) for chunk in boxes.split(self.roi_chunk) if len(chunk)]
        return torch.cat(found) if found else boxes.new_zeros(0, FEATURE_DIM)

    def _pool_chunk(self, feature_map: Tensor, boxes: Tensor) -> Tensor:
        regions = roi_pool(feature_map.float(), [boxes], ROI_SIZE, 1 / STRIDE)  # (R, 1024, 14, 14)
        grid = self.head(regions)  # (R, 2048, 14, 14)
        return grid.mean(dim=(2, 3), dtype=torch.float32)

    def classify(self, features: Tensor) -> RegionScores:
        """Classes, attributes and box deltas of region features [R, 2048], in float32 also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            scores = self.cls_score(features)  # (R, classes)
            label = self.cls_embedding(scores.argmax(dim=1))  # (R, 256), of the background too
            hidden = F.relu(self.fc_attr(torch.cat([features, label], dim=1)))  # (R, 512)
            return RegionScores(scores.softmax(dim=1), self.attr_score(hidden).softmax(dim=1), self.bbox_pred(features))

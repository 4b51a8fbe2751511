"""FastRCNN that computes a region once although several samples have it."""

from __future__ import annotations

import torch
from torch import Tensor

from common.nn.fast_rcnn import FastRCNN


class SharingFastRCNN(FastRCNN):
    """FastRCNN with the same parameters and results. Samples about one image (image_row) often share regions too."""

    def roi_features(self, feature_map: Tensor, rois: Tensor, masks: Tensor | None, shared: bool) -> Tensor:
        if not shared:
            return super().roi_features(feature_map, rois, masks, shared)
        rois, masks, number = distinct(rois, masks)
        return super().roi_features(feature_map, rois, masks, shared)[number]


def distinct(rois: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """RoIs [K, 5] with their masks [K, S, S], n of them different.

    Returns the different ones, [n, 5] and [n, S, S], and int64 [K], the number of each RoI among them.
    """
    keys = rois if masks is None else torch.cat([rois, masks.flatten(1).float()], dim=1)
    keys, number = torch.unique(keys, dim=0, return_inverse=True)
    return keys[:, :5], None if masks is None else keys[:, 5:].unflatten(1, masks.shape[1:]), number

"""Regions of generated images as a store that computes them on access, for packing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from common.regions.regions import Regions, RegionStore
from data.scenes.description import Scene, render
from data.scenes.regions import region_features


class SceneRegions(RegionStore):
    """entries: scene and boxes float32 [n, 4] by the name of the image."""

    def __init__(self, entries: Mapping[str, tuple[Scene, np.ndarray]]) -> None:
        super().__init__("scenes")
        self.entries = entries

    def regions(self, name: str | int, with_features: bool = True) -> Regions:
        if str(name) not in self.entries:
            raise FileNotFoundError(f"no scene for image {name}")
        scene, boxes = self.entries[str(name)]
        regions = Regions(torch.from_numpy(boxes), width=scene.width, height=scene.height)
        if with_features:
            whole = np.array([[0, 0, scene.width, scene.height]], np.float32)
            features = torch.from_numpy(region_features(render(scene), np.concatenate([boxes, whole])))
            regions.features, regions.image_feature = features[:-1], features[-1]
        return regions

    def names(self) -> list[str]:
        return sorted(self.entries)

    def __contains__(self, name: str | int) -> bool:
        return str(name) in self.entries

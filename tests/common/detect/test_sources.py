"""Box sources that are detectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from common.detect.sources import build_source
from common.regions.arguments import DetectorLimits
from common.regions.box_sources import ImageEntry

GRAY = Image.new("RGB", (64, 48), (128, 128, 128))


def test_detector(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no detector weights at none\.pth"):
        build_source("detector:none.pth")
    torch.manual_seed(0)
    weights = tmp_path / "detector.pth"
    torch.save(fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4).state_dict(), weights)
    source = build_source(f"detector:{weights}", DetectorLimits(min_boxes=3, max_boxes=5))
    source._model.transform.min_size = (64,)  # type: ignore[attr-defined]
    regions = source.boxes(ImageEntry("a", "a.jpg"), GRAY)
    assert 3 <= len(regions.boxes) <= 5
    assert regions.boxes.min() >= 0 and (regions.boxes <= torch.tensor([64, 48, 64, 48])).all()
    assert regions.class_scores is not None and regions.class_scores.shape[1] == 4
    torch.testing.assert_close(regions.class_scores.sum(1), torch.ones(len(regions.boxes)))
    # Resized to 161 pixels: 161 times the float32 ratio 121 / 161 is above 121.
    source._limits = DetectorLimits(min_boxes=300, max_boxes=300)  # type: ignore[attr-defined]
    right = source.boxes(ImageEntry("a", "a.jpg"), GRAY.resize((121, 48))).boxes[:, 2]
    assert right.max() == 121
    (tmp_path / "images").mkdir()
    GRAY.save(tmp_path / "images/COCO_val2014_000000000009.jpg")
    assert [entry.name for entry in source.entries(str(tmp_path / "images"))] == ["9"]

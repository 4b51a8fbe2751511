"""The COCO part of the data kit with the region files that the golden README defines."""

from __future__ import annotations

import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.regions.json_store import save_regions
from common.regions.regions import Regions

FEATURE_DIM = 2048

_kept: list[tempfile.TemporaryDirectory[str]] = []


@lru_cache
def linked_coco(data: Path) -> Path:
    """A folder of links to the kit's `coco`, with the generated region files of the README beside them."""
    _kept.append(tempfile.TemporaryDirectory(prefix="golden-kit-"))
    coco = Path(_kept[-1].name) / "coco"
    coco.mkdir()
    for entry in (data / "coco").iterdir():
        (coco / entry.name).symlink_to(entry)
    folder = coco / "vgbua_res101_precomputed" / "trainval2014_resnet101_faster_rcnn_genome"
    for split in ("train2014", "val2014"):
        write_regions(data / "coco" / "annotations" / f"instances_{split}.json", folder)
    return coco


def write_regions(instances: Path, folder: Path) -> None:
    """Boxes of the annotations, features by the seed of the image id."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.loads(instances.read_text())
    for image in content["images"]:
        i = image["id"]
        boxes = clipped_boxes(content["annotations"], image)
        features = np.abs(np.random.default_rng(i).standard_normal((len(boxes), FEATURE_DIM)))
        regions = Regions(
            torch.from_numpy(boxes.astype(np.float32)),
            torch.from_numpy(features.astype(np.float32)),
            width=image["width"],
            height=image["height"],
        )
        save_regions(folder, str(i), regions)


def clipped_boxes(annotations: list[dict[str, Any]], image: dict[str, Any]) -> np.ndarray:
    """float64 [n, 4] xyxy of the annotations of an image, clipped to it. Without any, the box of the whole image."""
    width, height = image["width"], image["height"]
    rows = [a["bbox"] for a in annotations if a["image_id"] == image["id"]]
    boxes = np.array([[x, y, x + w - 1, y + h - 1] for x, y, w, h in rows] or [[0, 0, width - 1, height - 1]], float)
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, width - 1)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, height - 1)
    return boxes

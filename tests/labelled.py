"""A store of regions with names: scores of Visual Genome's objects and attributes, and features."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from common.predict.load import load_predictor
from common.predict.predictor import Predictor
from common.regions.json_store import save_regions
from common.regions.names import region_name
from common.regions.regions import Regions

LABELS = ["red dog 0.87", "sky 1.00", "", "refrigerator 0.33"]  # the third is background alone


def save_labelled(store: Path, image: Path, name: str | None = None) -> Regions:
    """Writes the regions of an image, four boxes with LABELS. name: in the store, None for the name of the file."""
    width, height = Image.open(image).size
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.7], [0, 0, 0.9, 0.3], [0.5, 0.5, 0.9, 0.9], [0.55, 0.31, 0.93, 0.61]])
    boxes *= torch.tensor([width, height, width, height])
    classes, attributes = torch.zeros(4, 1601), torch.zeros(4, 401)
    classes[0, 118], classes[1, 73], classes[2, 0], classes[3, 27] = 0.87, 1.0, 1.0, 0.33
    attributes[:, 0], attributes[0, 5], attributes[1, 5] = 0.9, 0.1, 0.05
    features = torch.rand(4, 2048, generator=torch.Generator().manual_seed(0))
    regions = Regions(boxes, features, features.mean(0), classes, width, height, attributes)
    store.mkdir(exist_ok=True)
    save_regions(store, name or region_name(image), regions)
    return regions


def labelled_predictor(ckpt: Path, store: Path) -> Predictor:
    return load_predictor(ckpt, device="cpu", boxes=f"regions:{store}")

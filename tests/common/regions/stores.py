"""Made-up regions, and the forms in which a store may keep them."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import torch

from common.regions.json_store import JsonRegions
from common.regions.packed_store import pack
from common.regions.regions import FEATURE_DIM, Regions, RegionStore

KEYS = ("boxes", "features", "image_feature", "class_scores", "attribute_scores")


def make(count: int = 3, seed: int = 0, classes: int = 5) -> Regions:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 20
    return Regions(
        boxes=torch.cat([corner, corner + 10], dim=1),
        features=torch.rand(count, FEATURE_DIM, generator=generator),
        image_feature=torch.rand(FEATURE_DIM, generator=generator),
        class_scores=torch.rand(count, classes, generator=generator).softmax(1),
        attribute_scores=torch.rand(count, 4, generator=generator).softmax(1),
        width=64,
        height=48,
    )


def assert_same(got: Regions, wanted: Regions, atol: float = 0) -> None:
    assert (got.width, got.height) == (wanted.width, wanted.height)
    for key in KEYS:
        torch.testing.assert_close(getattr(got.in_memory(), key), getattr(wanted, key), atol=atol, rtol=0, msg=key)


def zipped(folder: Path, prefix: str) -> str:
    path = f"{folder}.zip"
    with ZipFile(path, "w") as file:
        for entry in folder.iterdir():
            file.write(entry, prefix + entry.name)
    return path


def as_folder(folder: Path) -> RegionStore:
    return JsonRegions(folder)


def as_zip(folder: Path) -> RegionStore:
    return JsonRegions(zipped(folder, "regions/"))


def as_flat_zip(folder: Path) -> RegionStore:
    return JsonRegions(zipped(folder, ""))


def as_packed(folder: Path) -> RegionStore:
    return pack(JsonRegions(folder), f"{folder}.packed")

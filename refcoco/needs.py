"""The files of RefCOCO+, RefCOCO and RefCOCOg that a run reads. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from common.config import Config
from common.needs import SPLITS, Need, image_folder_need, region_store_need
from refcoco.files import DETECTIONS_FILE, IMAGE_FOLDER, INSTANCES_FILE, REGION_FOLDER


def needs(cfg: Config) -> list[Need]:
    dataset, root = cfg.DATASET, Path(cfg.DATASET.DATASET_PATH)
    name = dataset.DATASET or "refcoco+"
    precomputed = cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED
    proposals = any("proposal" in dataset[f"{split}_BOXES"] for split in SPLITS)
    official = dataset.PROPOSAL_SOURCE == "official"
    references = f"{name}/refs({dataset.SPLIT_BY})"
    found = [
        Need(root, (f"{references}.p", f"{references}.json")),
        Need(root, (f"{name}/instances.json",)),
        Need(root, (INSTANCES_FILE,)),
    ]
    if proposals and official:
        found.append(Need(root, (f"{name}/{DETECTIONS_FILE}",)))
    if not precomputed:
        found.append(image_folder_need(root, IMAGE_FOLDER))
    if precomputed or (proposals and not official):
        found.append(region_store_need(dataset.REGION_PATH or root / REGION_FOLDER, root))
    return found

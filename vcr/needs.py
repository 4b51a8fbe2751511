"""The files of VCR that a run reads. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from common.config import Config
from common.needs import Need, image_folder_need, names_of, region_store_need


def needs(cfg: Config) -> list[Need]:
    dataset, root = cfg.DATASET, Path(cfg.DATASET.DATASET_PATH)
    found = [Need(root, (file,)) for file in names_of(dataset, "ANNOTATION_FILE")]
    # With precomputed features too: the folders of images hold the metadata.
    found += [image_folder_need(root, name) for name in names_of(dataset, "IMAGE_SET")]
    if cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED:
        found.append(region_store_need(dataset.REGION_PATH, root))
    return found

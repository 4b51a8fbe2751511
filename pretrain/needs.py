"""The files of captions and plain text that a run reads. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from common.config import Config, dataset_sections
from common.errors import DataError
from common.files.archives import split_region_path
from common.needs import Need, file_need, image_folder_need, names_of, region_store_need
from pretrain.records import read_record


def needs(cfg: Config) -> list[Need]:
    found: list[Need] = []
    for entry in dataset_sections(cfg):
        if entry.DATASET == "conceptual_captions":
            found += _conceptual_captions(cfg, entry)
        elif entry.DATASET == "coco_captions":
            found += _coco_captions(cfg, entry)
        else:
            found += [file_need(file) for file in names_of(entry, "ANNOTATION_FILE")]
    return found


def _conceptual_captions(cfg: Config, entry: Config) -> list[Need]:
    root = Path(entry.DATASET_PATH)
    found = []
    for name in names_of(entry, "IMAGE_SET"):
        images, regions = _folders(root, name)
        found.append(Need(root, (f"{name}_frcnn.json",)))
        if not cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED:
            found.append(image_folder_need(root, images))
        # `deep_checks` of this task opens the store, so the general check of region stores does not.
        store = region_store_need(entry.REGION_PATH or root / regions, root)
        found.append(replace(store, region_store=False))
    return found


def _coco_captions(cfg: Config, entry: Config) -> list[Need]:
    root = Path(entry.DATASET_PATH)
    found = []
    for name in names_of(entry, "IMAGE_SET"):
        found += [Need(root, (f"annotations/{kind}_{name}2017.json",)) for kind in ("captions", "instances")]
        if not cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED:
            found.append(image_folder_need(root, f"{name}2017"))
    return found


def _folders(root: Path, name: str) -> tuple[str, str]:
    """Returns the folders of images and of region files that the first record names, else the usual ones."""
    file = root / f"{name}_frcnn.json"
    try:
        with file.open(encoding="utf-8") as lines:
            record = read_record(lines.readline(), f"{file}: line 1")
    except (OSError, UnicodeDecodeError, DataError):
        return f"{name}_image", f"{name}_frcnn"
    image, regions = (split_region_path(str(record[key]), zip_mode=False)[0] for key in ("image", "frcnn"))
    return image, regions

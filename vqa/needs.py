"""The files of VQA v2 that a run reads. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from common.config import Config
from common.needs import Need, file_need, image_folder_need, names_of, region_store_need
from vqa.annotations import ImageSet, parse_image_sets


def needs(cfg: Config) -> list[Need]:
    """Raises DataError for an unknown image set."""
    dataset, root = cfg.DATASET, Path(cfg.DATASET.DATASET_PATH)
    found = [file_need(dataset.ANSWER_VOCAB_FILE, root)]
    for name in names_of(dataset, "IMAGE_SET"):
        [image_set] = parse_image_sets(name)
        found += [Need(root, (file,)) for file in _question_files(image_set, dataset.USE_IMDB)]
        if cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED:  # from pixels the images have their sizes
            found.append(Need(root, (image_set.metadata,)))
        else:
            found.append(image_folder_need(root, image_set.images))
        store = dataset.REGION_PATH or root / image_set.region_folder(dataset.BOXES)
        found.append(region_store_need(store, root))
    return found


def _question_files(image_set: ImageSet, from_imdb: bool) -> list[str]:
    if from_imdb:
        return [image_set.imdb_file]
    return [image_set.questions_file, *([image_set.annotations_file] if image_set.has_answers else [])]

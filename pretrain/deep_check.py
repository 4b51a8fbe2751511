"""The look into Conceptual Captions for `python -m common.doctor --deep`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial

from common.config import Config, dataset_sections
from common.data.text import load_tokenizer
from common.errors import ImageError
from common.files.archives import exists
from common.files.images import load_image
from common.inspect.deep_check import SHOWN, check_regions, spread
from common.regions.regions import RegionStore
from common.task import DeepCheck
from pretrain.captions import ConceptualCaptions
from pretrain.dataset import build_one


def deep_checks(cfg: Config, samples: int) -> list[DeepCheck]:
    """Returns a check of each image set of Conceptual Captions in a config."""
    checks = []
    for entry in dataset_sections(cfg):
        if entry.DATASET == "conceptual_captions":
            splits = {entry.VAL_IMAGE_SET: "val", entry.TRAIN_IMAGE_SET: "train"}
            for name, split in reversed(splits.items()):
                run: Callable[[], tuple[str, list[str]]] = partial(check_captions, cfg, entry, split, samples)
                checks.append(DeepCheck(f"captions of {name}", run))
    return checks


def check_captions(cfg: Config, entry: Config, split: str, samples: int) -> tuple[str, list[str]]:
    """Checks that every record has a region file, for a missing one ends a run, and of some also image and regions."""
    dataset = build_one(cfg, entry, split, load_tokenizer(cfg.NETWORK.BERT_MODEL_NAME))
    assert isinstance(dataset, ConceptualCaptions)
    chosen = set(spread(len(dataset), samples))
    names: dict[RegionStore, set[str]] = defaultdict(set)
    sizes: dict[RegionStore, dict[str, tuple[int, int]]] = defaultdict(dict)
    problems: list[str] = []
    missing = 0
    for index in range(len(dataset)):
        store, name = dataset.region_file(index)
        if name not in store:
            missing += 1
            if missing <= SHOWN:
                problems.append(f"record {index + 1}: no regions of {name} in {store.path}")
        elif index in chosen:
            names[store].add(name)
            try:
                if size := image_size(dataset.image_path(index), cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED):
                    sizes[store][name] = size
            except (FileNotFoundError, ImageError) as error:
                problems.append(str(error))
    if missing:
        summary = f"{missing} of {len(dataset)} records have no region file (data.captions_files --with-regions)"
        problems.insert(0, summary)
    network = cfg.NETWORK
    classes = network.VLBERT.visual_region_classes if network.WITH_MVRC_LOSS else None
    for store in names:
        problems += check_regions(store, sorted(names[store]), network.IMAGE_FEAT_PRECOMPUTED, sizes[store], classes)
    read, decoded = sum(map(len, names.values())), sum(map(len, sizes.values()))
    found = len(dataset) - missing
    return f"{found} of {len(dataset)} with regions, {read} read; {decoded} images decoded", problems


def image_size(path: str, may_be_missing: bool) -> tuple[int, int] | None:
    """Returns width and height of an image, None for one that is missing and may be.

    Raises FileNotFoundError and ImageError.
    """
    if not exists(path):
        if may_be_missing:
            return None
        raise FileNotFoundError(f"no image {path}")
    return load_image(path).size

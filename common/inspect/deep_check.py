"""Opens what a config reads: `python -m common.doctor --cfg FILE --deep`.

The data sets are built as a run builds them and some records of each are made into samples; region files, images and
weights are read. What does not work is a problem: one line that names the file or the key.
"""

from __future__ import annotations

import json
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.config import Config
from common.config.sections import dataset_sections
from common.data.dataset import TaskDataset
from common.data.text import load_tokenizer
from common.errors import DataError, ImageError, RegionError
from common.files.archives import exists, split_region_path, unpacked
from common.files.images import load_image
from common.files.lines import LineFile
from common.regions.check import check
from common.regions.open import open_regions
from common.regions.regions import RegionStore
from common.task import load_task
from common.weights.foreign import load_initial_weights

Problems = list[str]
CAPTIONS = "conceptual_captions"
SHOWN = 5  # problems of one kind of check; the rest is counted


def deep_check(task_name: str, cfg: Config, stores: Sequence[Path], samples: int) -> Problems:
    """Prints a line for each thing that was opened, and returns what is wrong.

    stores: region stores to look into, without those of captions. samples: records of each data set and store.
    """
    task = load_task(task_name)
    problems: Problems = []
    problems += _report("vocabulary", check_vocabulary, cfg)
    for split in ("train", "val", "test") if task.has_results else ("train", "val"):
        problems += _report(f"{split} data", check_data, task, cfg, split, samples)
    for entry, name in _captions(cfg):
        problems += _report(f"captions of {name}", check_captions, cfg, entry, name, samples)
    for store in stores:
        problems += _report(f"regions {store}", check_store, cfg, store, samples)
    return problems + _report("weights", check_weights, task, cfg)


def _report(name: str, look: Callable[..., tuple[str, Problems]], *args: Any) -> Problems:
    """Runs one check and prints its outcome; whatever it raises is a problem, as is every warning it logs."""
    with _warnings() as warned:
        try:
            text, found = look(*args)
        except Exception as error:  # one thing that is broken must not hide the others
            text, found = "cannot be used", [_message(error)]
    found = _shortened([*found, *dict.fromkeys(warned)])
    print(f"{'ok      ' if not found else 'PROBLEM '} {name}: {text}")
    for message in found:
        print(f"  {message}")
    return [f"{name}: {message}" for message in found]


def _shortened(found: Problems) -> Problems:
    more = [f"... {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return [*found[:SHOWN], *more]


def _message(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, (ValueError, OSError)) and text else f"{type(error).__name__}: {text}"


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Messages of the warnings that are logged inside the block."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler, root = Collector(logging.WARNING), logging.getLogger()
    root.addHandler(handler)
    try:
        yield messages
    finally:
        root.removeHandler(handler)


def spread(count: int, samples: int) -> list[int]:
    """Up to `samples` numbers below `count`, evenly spread, the first and the last among them."""
    if count <= samples or samples < 2:
        return list(range(min(count, samples)))
    return [round(i * (count - 1) / (samples - 1)) for i in range(samples)]


# What is looked at


def check_vocabulary(cfg: Config) -> tuple[str, Problems]:
    network = cfg.NETWORK
    have, wanted = len(load_tokenizer(network.BERT_MODEL_NAME).vocab), network.VLBERT.vocab_size
    wrong = have > wanted
    return f"{have} tokens", [f"NETWORK.VLBERT.vocab_size is {wanted}, the vocabulary has {have}"] if wrong else []


def check_data(task: Any, cfg: Config, split: str, samples: int) -> tuple[str, Problems]:
    """Builds the data sets of a split as a run does, and some samples of each."""
    built = task.build_dataset(cfg, split)
    texts, problems = [], []
    for entry, dataset in zip(dataset_sections(cfg), built if isinstance(built, list) else [built], strict=True):
        chosen = spread(len(dataset), samples)
        texts.append(f"{entry.DATASET or task.name} {len(dataset)} records, {len(chosen)} made into samples")
        problems += check_samples(dataset, chosen)
    return "; ".join(texts), problems


def check_samples(dataset: TaskDataset, chosen: Sequence[int]) -> Problems:
    problems = []
    for index in chosen:
        try:
            dataset.sample(index, random.Random(index))
        except Exception as error:  # a broken record must not hide the others
            problems.append(f"record {index + 1}: {_message(error)}")
    return problems


def _captions(cfg: Config) -> list[tuple[Any, str]]:
    """The image sets of Conceptual Captions in a config, each once."""
    entries = [entry for entry in dataset_sections(cfg) if entry.DATASET == CAPTIONS]
    return [(e, name) for e in entries for name in dict.fromkeys((e.TRAIN_IMAGE_SET, e.VAL_IMAGE_SET))]


def check_captions(cfg: Config, entry: Any, name: str, samples: int) -> tuple[str, Problems]:
    """Every record has a region file, for a missing one ends a run; of some, image and regions fit each other."""
    root = Path(entry.DATASET_PATH)
    lines = LineFile(root / f"{name}_frcnn.json")
    stores: dict[str, RegionStore] = {}
    sizes: dict[str, dict[str, tuple[int, int] | None]] = defaultdict(dict)  # store -> name -> size of the image
    problems, decoded, missing = [], 0, 0
    chosen = set(spread(len(lines), samples))
    for index in range(len(lines)):
        image, folder, stem = read_record(lines, index, root, entry)
        if folder not in stores:
            stores[folder] = open_regions(folder, entry.ZIP_MODE)
        if stem not in stores[folder]:
            missing += 1
            problems += (
                [f"record {index + 1}: no regions of {stem} in {stores[folder].path}"] if missing <= SHOWN else []
            )
        elif index in chosen:
            sizes[folder][stem], found = check_image(image, cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED)
            decoded += sizes[folder][stem] is not None
            problems += found
    if missing:
        problems.insert(
            0, f"{missing} of {len(lines)} records have no region file (data.captions_files --with-regions)"
        )
    for folder, found_sizes in sizes.items():
        problems += check_regions(cfg, stores[folder], list(found_sizes), found_sizes)
    read = sum(map(len, sizes.values()))
    return f"{len(lines) - missing} of {len(lines)} with regions, {read} read; {decoded} images decoded", problems


def read_record(lines: LineFile, index: int, root: Path, entry: Any) -> tuple[str, str, str]:
    """Path of the image, region store and name in it. Raises DataError naming the line."""
    try:
        record = json.loads(lines[index])
        image, frcnn = str(record["image"]), str(record["frcnn"])
        record["caption"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{lines.path}: line {index + 1} has no image, caption and frcnn: {error!r}") from error
    folder, stem = split_region_path(frcnn, entry.ZIP_MODE)
    if entry.REGION_PATH:
        stem = Path(stem).name
    place = image if entry.ZIP_MODE else unpacked(image)
    return f"{root}/{place}", entry.REGION_PATH or f"{root}/{folder}", stem


def check_image(path: str, may_be_missing: bool) -> tuple[tuple[int, int] | None, Problems]:
    """Width and height, or None and why."""
    if not exists(path):
        return None, [] if may_be_missing else [f"no image {path}"]
    try:
        return load_image(path).size, []
    except ImageError as error:
        return None, [str(error)]


def check_store(cfg: Config, path: Path, samples: int) -> tuple[str, Problems]:
    store = open_regions(path, any(entry.ZIP_MODE for entry in dataset_sections(cfg)))
    names = store.names()
    chosen = [names[i] for i in spread(len(names), samples)]
    return f"{len(names)} images, {len(chosen)} read", check_regions(cfg, store, chosen)


def check_regions(
    cfg: Config, store: RegionStore, names: Sequence[str], sizes: dict[str, tuple[int, int] | None] | None = None
) -> Problems:
    """What `common.regions.check.check` finds, and fields that the config needs.

    sizes: width and height of the images by name, None where unknown.
    """
    known = {name: size for name, size in (sizes or {}).items() if size is not None}
    problems = [str(problem) for problem in check(store, list(names), known)]
    network = cfg.NETWORK
    wanted = network.VLBERT.get("visual_region_classes") if network.get("WITH_MVRC_LOSS") else None
    for name in names:
        try:
            regions = store.regions(name)
        except (RegionError, OSError):
            continue  # reported above
        scores = regions.class_scores
        if network.IMAGE_FEAT_PRECOMPUTED and regions.features is None:
            problems.append(f"{name}: no features, NETWORK.IMAGE_FEAT_PRECOMPUTED is true")
        if wanted and (scores is None or scores.shape[1] != wanted):
            have = "no classes" if scores is None else f"{scores.shape[1]} classes"
            problems.append(f"{name}: {have}, NETWORK.VLBERT.visual_region_classes is {wanted}")
    return problems


def check_weights(task: Any, cfg: Config) -> tuple[str, Problems]:
    """Builds the model and loads all that a run starts from."""
    reports = load_initial_weights(task.build_model(cfg), cfg, task.adapt_pretrained(cfg))
    return "; ".join(str(report) for report in reports) or "none are read: random ones are configured", []

"""The check behind `python -m common.doctor --cfg FILE --deep`: opens what a config names.

It builds the data sets as a run does, makes some records of each into samples, and reads region files, images and
weights. A problem is one line that names the file or the key.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from common.config import Config, dataset_sections
from common.data.dataset import TaskDataset
from common.data.text import load_tokenizer
from common.errors import RegionError
from common.regions.check import check
from common.regions.open import open_regions
from common.regions.regions import RegionStore
from common.task import DeepCheck, Task, load_task
from common.weights.foreign import load_initial_weights

Problems = list[str]
SHOWN = 5  # problems of one check that are printed; the others are counted


def deep_check(task_name: str, cfg: Config, stores: Sequence[Path], samples: int) -> Problems:
    """Prints a line for each thing that was opened. Returns the problems.

    stores: region stores to look into. samples: how many records of each data set and store are opened.
    """
    task = load_task(task_name)
    splits = ("train", "val", "test") if task.has_results else ("train", "val")
    checks = [
        DeepCheck("vocabulary", partial(check_vocabulary, cfg)),
        *(DeepCheck(f"{split} data", partial(check_data, task, cfg, split, samples)) for split in splits),
        *task.deep_checks(cfg, samples),
        *(DeepCheck(f"regions {store}", partial(check_store, cfg, store, samples)) for store in stores),
        DeepCheck("weights", partial(check_weights, task, cfg)),
    ]
    return [problem for one in checks for problem in _report(one)]


def _report(one: DeepCheck) -> Problems:
    """Runs one check and prints its outcome. An exception is a problem, and so is every warning in the log."""
    with _warnings() as warned:
        try:
            text, found = one.run()
        except Exception as error:  # one thing that is broken must not hide the others
            text, found = "cannot be used", [message_of(error)]
    found = _shortened([*found, *dict.fromkeys(warned)])
    print(f"{'ok      ' if not found else 'PROBLEM '} {one.name}: {text}")
    for message in found:
        print(f"  {message}")
    return [f"{one.name}: {message}" for message in found]


def _shortened(found: Problems) -> Problems:
    more = [f"... {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return [*found[:SHOWN], *more]


def message_of(error: Exception) -> str:
    """Returns the text of an error in one line, with its type where the text alone does not explain it."""
    text = " ".join(str(error).split())
    return text if isinstance(error, (ValueError, OSError)) and text else f"{type(error).__name__}: {text}"


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collects the messages of the warnings that are logged inside the block."""
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
    """Returns up to `samples` numbers below `count`, evenly spread, the first and the last among them."""
    if count <= samples or samples < 2:
        return list(range(min(count, samples)))
    return [round(i * (count - 1) / (samples - 1)) for i in range(samples)]


# ---------------------------------------------------------------------------------------------- the checks


def check_vocabulary(cfg: Config) -> tuple[str, Problems]:
    network = cfg.NETWORK
    found, wanted = len(load_tokenizer(network.BERT_MODEL_NAME).vocab), network.VLBERT.vocab_size
    wrong = found > wanted
    return f"{found} tokens", [f"NETWORK.VLBERT.vocab_size is {wanted}, the vocabulary has {found}"] if wrong else []


def check_data(task: Task, cfg: Config, split: str, samples: int) -> tuple[str, Problems]:
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
            problems.append(f"record {index + 1}: {message_of(error)}")
    return problems


def check_store(cfg: Config, path: Path, samples: int) -> tuple[str, Problems]:
    store = open_regions(path, any(entry.ZIP_MODE for entry in dataset_sections(cfg)))
    names = store.names()
    chosen = [names[i] for i in spread(len(names), samples)]
    problems = check_regions(store, chosen, cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED)
    return f"{len(names)} images, {len(chosen)} read", problems


def check_regions(
    store: RegionStore,
    names: Sequence[str],
    with_features: bool,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    classes: int | None = None,
) -> Problems:
    """What `common.regions.check.check` finds, and fields that the config needs.

    with_features: features are needed. sizes: width and height of images by name, as far as they are known.
    classes: width of the class scores that are needed, None where none are.
    """
    problems = [str(problem) for problem in check(store, list(names), dict(sizes or {}))]
    for name in names:
        try:
            regions = store.regions(name)
        except (RegionError, OSError):
            continue  # reported above
        scores = regions.class_scores
        if with_features and regions.features is None:
            problems.append(f"{name}: no features, NETWORK.IMAGE_FEAT_PRECOMPUTED is true")
        if classes and (scores is None or scores.shape[1] != classes):
            found = "no classes" if scores is None else f"{scores.shape[1]} classes"
            problems.append(f"{name}: {found}, NETWORK.VLBERT.visual_region_classes is {classes}")
    return problems


def check_weights(task: Task, cfg: Config) -> tuple[str, Problems]:
    """Builds the model and loads all that a run starts from."""
    reports = load_initial_weights(task.build_model(cfg), cfg, task.adapt_pretrained(cfg))
    return "; ".join(str(report) for report in reports) or "none are read: random ones are configured", []

"""Checks of complete values: the bounds and choices of single keys, and combinations that cannot work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from common.config.config import Config
from common.config.keys import Key, bad_value
from common.config.table import key_table, load_keys


def check(task: str, cfg: Config) -> None:
    """Raises ConfigError, naming key, value and what was expected, where a value or a combination cannot work."""
    for path, key, value in _items(task, cfg):
        _check_value(path, value, key)
    if "/" in cfg.MODEL_PREFIX or "\0" in cfg.MODEL_PREFIX:
        raise bad_value("MODEL_PREFIX", cfg.MODEL_PREFIX, "the start of a file name, without /")
    _check_image(cfg)
    _check_sizes(cfg)
    _check_fsdp(cfg)
    load_keys(task).check(cfg)
    _check_batch_sizes(cfg)


def _items(task: str, cfg: Config) -> Iterator[tuple[str, Key, Any]]:
    """Yields (path, row, value) of all values; a list of data sets yields DATASET[i].KEY."""
    for path, key in key_table(task).items():
        section, _, name = path.rpartition(".")
        node: Any = cfg
        for part in filter(None, section.split(".")):
            node = node[part]
        if isinstance(node, Mapping):
            yield path, key, node[name]
        else:
            yield from ((f"{section}[{i}].{name}", key, entry[name]) for i, entry in enumerate(node))


def _check_value(path: str, value: Any, key: Key) -> None:
    entries = value if isinstance(value, (list, tuple)) else [value]
    if key.choices and any(entry not in key.choices for entry in entries):
        one_of = "one of " if len(key.choices) > 1 else ""
        raise bad_value(path, value, one_of + ", ".join(map(repr, key.choices)))
    if key.minimum is not None and any(entry < key.minimum for entry in entries):
        raise bad_value(path, value, f"at least {key.minimum}")
    if key.maximum is not None and any(entry > key.maximum for entry in entries):
        raise bad_value(path, value, f"at most {key.maximum}")


def _check_image(cfg: Config) -> None:
    scales, network = cfg.SCALES, cfg.NETWORK
    if len(scales) != 2 or not 0 < scales[0] <= scales[1]:
        raise bad_value("SCALES", scales, "two sizes, the short side not above the long one")
    if not network.IMAGE_FEAT_PRECOMPUTED:
        for name in ("PIXEL_MEANS", "PIXEL_STDS"):
            if len(network[name]) != 3:
                raise bad_value(f"NETWORK.{name}", network[name], "three numbers, for B, G and R")
    if any(std <= 0 for std in network.PIXEL_STDS):
        raise bad_value("NETWORK.PIXEL_STDS", network.PIXEL_STDS, "numbers above 0")


def _check_sizes(cfg: Config) -> None:
    network, vlbert = cfg.NETWORK, cfg.NETWORK.VLBERT
    if vlbert.visual_size != network.IMAGE_FINAL_DIM:
        expected = f"NETWORK.VLBERT.visual_size, which is {vlbert.visual_size}"
        raise bad_value("NETWORK.IMAGE_FINAL_DIM", network.IMAGE_FINAL_DIM, expected)
    if vlbert.hidden_size % vlbert.num_attention_heads:
        expected = f"a multiple of NETWORK.VLBERT.num_attention_heads, which is {vlbert.num_attention_heads}"
        raise bad_value("NETWORK.VLBERT.hidden_size", vlbert.hidden_size, expected)
    steps = cfg.TRAIN.LR_STEP
    if list(steps) != sorted(steps):
        raise bad_value("TRAIN.LR_STEP", steps, "epochs in ascending order")


def _check_fsdp(cfg: Config) -> None:
    train = cfg.TRAIN
    if not train.FSDP:
        return
    if train.OPTIMIZER != "AdamW":
        raise bad_value("TRAIN.OPTIMIZER", train.OPTIMIZER, "AdamW, because TRAIN.FSDP is true")
    if train.PRECISION == "fp16" or (train.FP16 and not train.PRECISION):
        raise bad_value("TRAIN.FSDP", True, "False in fp16: use TRAIN.PRECISION bf16 or fp32")
    if train.COMPILE:
        raise bad_value("TRAIN.FSDP", True, "False, because TRAIN.COMPILE is true: the two were not tried together")
    if not cfg.NETWORK.VLBERT.visual_ln:
        raise bad_value("TRAIN.FSDP", True, "False, because NETWORK.VLBERT.visual_ln is false: its scales are scalars")


def _check_batch_sizes(cfg: Config) -> None:
    """One data set has one batch size; a list of them has a list of sizes."""
    datasets = cfg.DATASET
    for split in ("TRAIN", "VAL", "TEST"):
        sizes = cfg[split].BATCH_IMAGES
        if isinstance(datasets, Mapping):
            if not isinstance(sizes, int):
                raise bad_value(f"{split}.BATCH_IMAGES", sizes, "one number for one data set")
        elif isinstance(sizes, int) or len(sizes) != len(datasets):
            expected = f"a list of {len(datasets)}, one entry for each data set"
            raise bad_value(f"{split}.BATCH_IMAGES", sizes, expected)


def check_no_aspect_grouping(cfg: Config) -> None:
    """For a task whose datasets have no `group_ids`."""
    if cfg.TRAIN.ASPECT_GROUPING:
        expected = "False: the data sets of this task do not know their image sizes"
        raise bad_value("TRAIN.ASPECT_GROUPING", True, expected)


def check_region_path(cfg: Config) -> None:
    """For a task that has no usual place of precomputed features."""
    if cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED and not cfg.DATASET.REGION_PATH:
        raise bad_value("DATASET.REGION_PATH", "", "the region store, because NETWORK.IMAGE_FEAT_PRECOMPUTED is true")

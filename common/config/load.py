"""Configuration: defaults, YAML files, `_BASE_` and overrides become one checked, frozen Config (original 1.1 to 1.6).

Later sources replace earlier ones: defaults of the keys, `_BASE_` files, the file, overrides.
The file of a model folder begins with `_TASK_`, the name of its task. `_FILES_` names files of that folder by key.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.config.checks import check
from common.config.config import Config, did_you_mean
from common.config.convert import CONVERTERS
from common.config.keys import SECTIONS
from common.config.table import key_table, load_keys, table_path, tasks_with, unread_keys
from common.errors import ConfigError, DataError
from common.files.text import read_text

logger = logging.getLogger(__name__)


def default_config(task: str) -> Config:
    """Returns the defaults of `task`, not checked: every file must set some of them, such as SCALES, which is empty."""
    return _Draft(task).freeze()


def load_config(
    task: str, path: str | os.PathLike[str] | None = None, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Config:
    """Returns the configuration of a run.

    path: YAML file. Without one the overrides change the defaults, and the result is not checked.
    overrides: "TRAIN.LR=1e-4" texts whose values are YAML, or a mapping of dotted keys to values. A key of a data set
    in a list is DATASET.0.DATASET_PATH.
    Raises ConfigError, and FileNotFoundError where a file is missing. Logs one warning about keys without effect.
    """
    draft = _Draft(task)
    if path is not None:
        draft.merge_file(Path(path))
    draft.override(overrides)
    cfg = draft.freeze()
    if path is not None:
        try:
            check(task, cfg)
        except ConfigError as error:
            raise ConfigError(f"{path}{' with overrides' if overrides else ''}: {error}") from None
    unread = unread_keys(task, draft.given)
    if unread:
        logger.warning("these keys have no effect in %s: %s", task, ", ".join(unread))
    return cfg


def config_from_dict(task: str, values: Mapping[str, Any]) -> Config:
    """Returns the Config that `Config.to_dict` stored, for example in a checkpoint. It is not checked.

    A key that is missing has its default. Raises ConfigError for an unknown key or a wrong type.
    """
    draft = _Draft(task)
    draft.merge(values, "stored config")
    return draft.freeze()


def read_model_config(path: Path) -> tuple[str, dict[str, Any]]:
    """Returns the task and the values of the config.yaml in a model folder. Values that name its files have its path.

    Raises ConfigError where the file does not name its task, FileNotFoundError without the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file {path}: a model folder has one")
    tree = _read_yaml(path)
    task = _take_model_entries(tree, path)
    if not task:
        raise ConfigError(f"{path}: no _TASK_, which the config of a model folder begins with")
    return task, tree


def replace(cfg: Config, changes: Mapping[str, Any] | Sequence[str]) -> Config:
    """Returns a copy of `cfg` with dotted keys changed: replace(cfg, {"TEST.BATCH_IMAGES": 8}), or texts "KEY=VALUE".

    The copy is not checked again.
    Raises ConfigError for an unknown key or a wrong type.
    """
    draft = _Draft(cfg.task)
    draft.values = cfg.to_dict()
    draft.override(changes)
    return draft.freeze()


class _Draft:
    """A configuration under construction: nested plain values, and the paths of those that were given."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.keys = key_table(task)
        self.dataset_list = load_keys(task).dataset_list
        self.given: list[str] = []
        self.values: dict[str, Any] = {}
        for path, key in self.keys.items():
            _put(self.values, path.split("."), copy.deepcopy(key.default))
        self.dataset_defaults = copy.deepcopy(self.values["DATASET"])

    def freeze(self) -> Config:
        return Config(self.values, self.task)

    def merge_file(self, path: Path, below: tuple[Path, ...] = ()) -> None:
        """Merges a YAML file after its bases.

        Paths of bases are relative to the file. A later base replaces an earlier one. below: the files that lead here.
        """
        if path.resolve() in below:
            chain = " -> ".join(map(str, (*below, path.resolve())))
            raise ConfigError(f"{below[-1]}: _BASE_: files name each other in a circle: {chain}")
        if not path.is_file():
            named = f", named by _BASE_ in {below[-1]}" if below else ""
            raise FileNotFoundError(f"no configuration file {path}{named}")
        tree = _read_yaml(path)
        task = _take_model_entries(tree, path)
        if task not in ("", self.task):
            raise ConfigError(f"{path}: a config of {task}, not of {self.task}")
        bases = tree.pop("_BASE_", [])
        bases = [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
            raise ConfigError(f"{path}: _BASE_ = {bases!r}: expected a path or a list of paths")
        for base in bases:
            self.merge_file(path.parent / base, (*below, path.resolve()))
        given = len(self.given)
        self.merge(tree, str(path))
        if task:  # a complete config has all keys, also those that have no effect
            del self.given[given:]

    def override(self, overrides: Sequence[str] | Mapping[str, Any]) -> None:
        if isinstance(overrides, str):
            raise TypeError(f"overrides must be a list of texts or a mapping, not the text {overrides!r}")
        pairs = overrides.items() if isinstance(overrides, Mapping) else map(self._parse_override, overrides)
        for path, value in pairs:
            self._override(path, value)

    def _parse_override(self, text: str) -> tuple[str, Any]:
        path, equals, raw = text.partition("=")
        path = path.strip()
        if not equals:
            raise ConfigError(f"override {text!r}: expected KEY=VALUE")
        key = self.keys.get(table_path(path))
        try:
            value = yaml.safe_load(raw)
        except yaml.YAMLError as error:
            raise ConfigError(f"override {text!r}: the value is no YAML: {error}") from None
        if key is not None and key.type == "str" and not isinstance(value, str):
            value = raw.strip()  # GPUS=0 is a text whose quotes the shell removed
        return path, value

    def _override(self, path: str, value: Any) -> None:
        head, *rest = path.replace("[", ".").replace("]", "").split(".")
        datasets = self.values["DATASET"]
        if head == "DATASET" and isinstance(datasets, dict) and rest and rest[0].isdigit():
            raise ConfigError(f"overrides: {path}: DATASET is one mapping here, not a list")
        if head == "DATASET" and isinstance(datasets, list) and rest:
            if not rest[0].isdigit() or int(rest[0]) >= len(datasets):
                first, last = f"DATASET.0.{rest[-1]}", len(datasets) - 1
                raise ConfigError(f"overrides: {path}: DATASET is a list; name one of its entries 0 to {last}: {first}")
            entry = f"DATASET[{rest[0]}]."
            if rest[1:]:
                value = _nested(rest[1:], value)
            self._merge_section(datasets[int(rest[0])], value, entry, "overrides")
        else:
            self.merge(_nested([head, *rest], value), "overrides")

    def merge(self, tree: Mapping[str, Any], source: str) -> None:
        """Merges nested values; `source` names them in errors."""
        self._merge_section(self.values, tree, "", source)

    def _merge_section(self, into: dict[str, Any], given: Any, prefix: str, source: str) -> None:
        if not isinstance(given, Mapping):
            raise ConfigError(f"{source}: {prefix[:-1]} = {given!r}: expected a mapping of keys to values")
        for name, value in given.items():
            path = f"{prefix}{name}"
            if path == "DATASET" and self.dataset_list and isinstance(value, (list, tuple)):
                into[name] = self._datasets(into[name], value, source)
            elif path in SECTIONS:
                if isinstance(into[name], list):
                    raise ConfigError(f"{source}: DATASET: a mapping cannot change the list that came before it")
                self._merge_section(into[name], value, path + ".", source)
            else:
                into[name] = self._convert(path, value, source)

    def _datasets(self, before: Any, entries: Sequence[Any], source: str) -> list[dict[str, Any]]:
        """Returns the entries, each merged over the mapping of an earlier source. An earlier list has no effect."""
        template = self.dataset_defaults if isinstance(before, list) else before
        datasets = [copy.deepcopy(template) for _ in entries]
        for i, (values, entry) in enumerate(zip(datasets, entries, strict=True)):
            self._merge_section(values, entry, f"DATASET[{i}].", source)
        return datasets

    def _convert(self, path: str, value: Any, source: str) -> Any:
        key = self.keys.get(table_path(path))
        if key is None:
            raise ConfigError(f"{source}: {path}: {self._unknown(path)}")
        try:
            converted = CONVERTERS[key.type](value)
        except (TypeError, ValueError):
            kind = type(value).__name__
            raise ConfigError(f"{source}: {path} = {value!r} ({kind}): expected {key.type}, {key.meaning}") from None
        self.given.append(path)
        return converted

    def _unknown(self, path: str) -> str:
        row = table_path(path)
        if others := tasks_with(row):
            return f"no key of {self.task}, only of {', '.join(others)}"
        sections = [section for section in SECTIONS if section.count(".") == row.count(".")]
        return f"unknown key in {self.task}{did_you_mean(row, [*self.keys, *sections])}"


class _Loader(yaml.SafeLoader):
    """Reads plain values only. A key that stands twice in a mapping is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in names:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(read_text(path, "a YAML file"), _Loader)
    except DataError as error:
        raise ConfigError(str(error)) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: no valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: no valid YAML: nested too deeply") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {type(tree).__name__}")
    return tree


def _take_model_entries(tree: dict[str, Any], path: Path) -> str:
    """Removes `_TASK_` and `_FILES_` of a model folder, and puts the paths of its files in. Returns the task or ""."""
    task, files = tree.pop("_TASK_", ""), tree.pop("_FILES_", {})
    if not isinstance(task, str):
        raise ConfigError(f"{path}: _TASK_ = {task!r}: expected the name of a task")
    if not isinstance(files, dict) or not all(isinstance(x, str) for pair in files.items() for x in pair):
        raise ConfigError(f"{path}: _FILES_ = {files!r}: expected a mapping of keys to names of files")
    for key, value in files.items():
        kind, colon, name = value.rpartition(":")  # a value may have the form resnet:FILE
        if Path(name).name != name:
            raise ConfigError(f"{path}: _FILES_: {key} = {value!r}: expected the name of a file in the same folder")
        _put(tree, key.split("."), f"{kind}{colon}{path.parent / name}")
    return task


def _nested(parts: Sequence[str], value: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    _put(tree, parts, value)
    return tree


def _put(tree: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
    tree[parts[-1]] = value

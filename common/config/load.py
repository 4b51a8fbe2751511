"""Configuration: defaults, YAML files, `_BASE_` and overrides become one checked, frozen Config (spec 01).

The keys are rows of `common/config/keys.py`. Precedence: overrides, file, its `_BASE_` files, defaults.
"""

from __future__ import annotations

import copy
import difflib
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from easydict import EasyDict

from common.config.keys import (
    KEYS,
    SECTIONS,
    check,
    keys_of,
    table_path,
    unread_keys,
)
from common.errors import ConfigError

__all__ = ["Config", "ConfigError", "config_from_dict", "default_config", "load_config", "replace", "unread_keys"]

logger = logging.getLogger(__name__)


class Config(EasyDict):
    """Attribute dictionary that is never written to: lists are tuples, sections are Configs. Copies and pickles.

    task: whose keys these are; an attribute of the outermost Config, not a key.
    """

    def __init__(self, values: Mapping[str, Any], task: str = "") -> None:
        # Past EasyDict, which would store every value twice and through the setters that raise here.
        dict.__init__(self, {name: _frozen(value) for name, value in values.items()})
        object.__setattr__(self, "task", task)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the config has no key {name!r} here{_hint(name, self)}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, for JSON and for checkpoints. `config_from_dict` reads it."""
        return {name: _plain(value) for name, value in self.items()}

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("a Config is frozen: use replace(), which gives a changed copy")

    __setattr__ = __setitem__ = __delattr__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return Config, (dict(self), self.task)


def default_config(task: str) -> Config:
    """The defaults of `task`, not checked: they hold values that every file must set, such as an empty SCALES."""
    return _Draft(task).freeze()


def load_config(
    task: str, path: str | os.PathLike[str] | None = None, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Config:
    """The configuration of a run.

    path: YAML file; without one the overrides change the defaults and, as those, go without `check`.
    overrides: "TRAIN.LR=1e-4" texts whose values are YAML, or a mapping of dotted keys to values. A key of a data set
        in a list is DATASET.0.ROOT_PATH.
    Raises ConfigError, or FileNotFoundError where a file is missing. Logs one warning about keys without effect.
    """
    draft = _Draft(task)
    if path is not None:
        draft.merge_file(Path(path))
    draft.override(overrides)
    cfg = draft.freeze()
    if path is not None:
        try:
            check(task, cfg)
        except ValueError as error:
            raise ConfigError(f"{path}{' with overrides' if overrides else ''}: {error}") from None
    unread = unread_keys(task, draft.given)
    if unread:
        logger.warning("these keys have no effect in %s: %s", task, ", ".join(unread))
    return cfg


def config_from_dict(task: str, values: Mapping[str, Any]) -> Config:
    """The Config that `Config.to_dict` gave, say to a checkpoint; not checked, and a key it lacks has its default.

    Raises ConfigError.
    """
    draft = _Draft(task)
    draft.merge(values, "stored config")
    return draft.freeze()


def replace(cfg: Config, changes: Mapping[str, Any] | Sequence[str]) -> Config:
    """A copy of `cfg` with dotted keys changed: replace(cfg, {"TEST.BATCH_IMAGES": 8}), or texts "KEY=VALUE". Not
    checked again.

    Raises ConfigError for an unknown key or a wrong type.
    """
    draft = _Draft(cfg.task)
    draft.values = cfg.to_dict()
    draft.override(changes)
    return draft.freeze()


class _Draft:
    """A configuration in the making: nested plain values, and the paths of those that were given."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.keys = keys_of(task)
        self.given: list[str] = []
        self.values: dict[str, Any] = {}
        for path, key in self.keys.items():
            _put(self.values, path.split("."), copy.deepcopy(key.default_in(task)))
        self.dataset_defaults = copy.deepcopy(self.values["DATASET"])

    def freeze(self) -> Config:
        return Config(self.values, self.task)

    def merge_file(self, path: Path, below: tuple[Path, ...] = ()) -> None:
        """Merges a YAML file after its bases, which are relative to it; a later base wins. below: who named it."""
        if path.resolve() in below:
            chain = " -> ".join(map(str, (*below, path.resolve())))
            raise ConfigError(f"{below[-1]}: _BASE_: files name each other in a circle: {chain}")
        if not path.is_file():
            named = f", named by _BASE_ in {below[-1]}" if below else ""
            raise FileNotFoundError(f"no configuration file {path}{named}")
        tree = _read_yaml(path)
        bases = tree.pop("_BASE_", [])
        bases = [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
            raise ConfigError(f"{path}: _BASE_ = {bases!r}: expected a path or a list of paths")
        for base in bases:
            self.merge_file(path.parent / base, (*below, path.resolve()))
        self.merge(tree, str(path))

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
            value = raw.strip()  # GPUS=0 and BOXES=36 mean text; a shell has eaten the quotes
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
            if path == "DATASET" and self.task == "pretrain" and isinstance(value, (list, tuple)):
                into[name] = self._datasets(into[name], value, source)
            elif path in SECTIONS:
                if isinstance(into[name], list):
                    raise ConfigError(f"{source}: DATASET: a mapping cannot change the list that came before it")
                self._merge_section(into[name], value, path + ".", source)
            else:
                into[name] = self._convert(path, value, source)

    def _datasets(self, before: Any, entries: Sequence[Any], source: str) -> list[dict[str, Any]]:
        """The entries, each on top of the mapping that stood there before; a list before it counts for nothing."""
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
        if row in KEYS:
            return f"no key of {self.task}, only of {', '.join(KEYS[row].tasks)}"
        sections = [section for section in SECTIONS if section.count(".") == row.count(".")]
        return f"unknown key in {self.task}{_hint(row, [*self.keys, *sections])}"


def _hint(path: str, candidates: Iterable[str]) -> str:
    """Names the candidate that `path` may stand for: the same name in another section, else a similar text."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    name = path.lower().rpartition(".")[2]
    same_name = [candidate for candidate in by_lower if candidate.rpartition(".")[2] == name]
    close = difflib.get_close_matches(path.lower(), same_name or by_lower, 1, 0.0 if same_name else 0.6)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""


class _Loader(yaml.SafeLoader):
    """Plain values only, and a key that stands twice in a mapping is an error instead of a silent choice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in names:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            tree = yaml.load(file, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: no valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {type(tree).__name__}")
    return tree


# ---- values ----


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _int(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError
    return value


def _float(value: Any) -> float:
    """Texts too: YAML 1.1 reads 1e-7, which lacks a point, as one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _str(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError
    return str(os.fspath(value))


def _list(convert: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def converted(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        return tuple(convert(entry) for entry in value)

    return converted


def _pair(second: Callable[[Any], Any]) -> Callable[[Any], tuple[str, Any]]:
    """A pair is a list of two, or the form of the published files, "name,value"."""

    def converted(value: Any) -> tuple[str, Any]:
        parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)):
            raise TypeError
        name, other = parts
        return _str(name), second(other)

    return converted


def _scales(value: Any) -> tuple[int, ...]:
    scales = _list(_int)(value)
    if len(scales) not in (0, 2):
        raise ValueError
    return scales


def _epochs(value: Any) -> tuple[float, ...]:
    """14, [14, 18] or the form of the published files, "14,18"."""
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    return _list(_float)(value if isinstance(value, (list, tuple)) else [value])


def _loss_scale(value: Any) -> float | str:
    return value if value == "dynamic" else _float(value)


CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "bool": _bool,
    "int": _int,
    "float": _float,
    "str": _str,
    "list of int": _list(_int),
    "list of float": _list(_float),
    "list of str": _list(_str),
    "list of (str, float)": _list(_pair(_float)),
    "list of (str, str)": _list(_pair(_str)),
    "pair of ints or empty": _scales,
    "int or list of int": lambda value: _list(_int)(value) if isinstance(value, (list, tuple)) else _int(value),
    "epochs": _epochs,
    "float or dynamic": _loss_scale,
}


def _frozen(value: Any) -> Any:
    if isinstance(value, Config):
        return value
    if isinstance(value, Mapping):
        return Config(value)
    return tuple(_frozen(entry) for entry in value) if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def _nested(parts: Sequence[str], value: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    _put(tree, parts, value)
    return tree


def _put(tree: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
    tree[parts[-1]] = value

"""The complete key table of a task: COMMON_KEYS and what `<task>/keys.py` adds and changes."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.config.convert import CONVERTERS
from common.config.keys import COMMON_KEYS, Key, TaskKeys, paths
from common.errors import ConfigError


def from_task(task: str, module: str, name: str) -> Any:
    """Returns `name` of the module `<task>.<module>`.

    Raises ConfigError where there is no such task, no such module or no such name in it.
    """
    if not is_task(task):
        known = ", ".join(task_names())
        raise ConfigError(f"unknown task {task!r}: there is no {task}/task.py; the tasks here are {known}")
    if not _is_module(task, module):
        raise ConfigError(f"task {task!r}: there is no {task}/{module}.py, which must define {name}")
    found = importlib.import_module(f"{task}.{module}")
    if not hasattr(found, name):
        raise ConfigError(f"task {task!r}: {task}/{module}.py does not define {name}")
    return getattr(found, name)


def is_task(name: str) -> bool:
    """Returns whether there is a package `name` with a module `task`."""
    return name.isidentifier() and _is_module(name, "task")


def _is_module(task: str, module: str) -> bool:
    try:
        return importlib.util.find_spec(f"{task}.{module}") is not None
    except ModuleNotFoundError:  # the package itself is missing
        return False


def task_names() -> list[str]:
    """Returns the tasks in alphabetical order: packages with a task.py beside `common` or in the working folder."""
    roots = (Path(__file__).resolve().parents[2], Path.cwd())
    names = {path.parent.name for root in roots for path in root.glob("*/task.py")}
    return sorted(names - {"common"})


def load_keys(task: str) -> TaskKeys:
    """Returns KEYS of `<task>/keys.py`. Raises ConfigError for an unknown task and for one without keys."""
    keys = from_task(task, "keys", "KEYS")
    if not isinstance(keys, TaskKeys):
        raise ConfigError(f"{task}/keys.py: KEYS is a {type(keys).__name__}: expected a TaskKeys")
    return keys


def key_table(task: str) -> dict[str, Key]:
    """Returns the keys of `task` by path.

    Raises ConfigError for an unknown task, and naming `<task>/keys.py` where it contradicts itself.
    """
    keys = load_keys(task)
    rows = (*COMMON_KEYS, *keys.rows)
    table: dict[str, Key] = {}
    for row in rows:
        if row.path in table:
            raise ConfigError(f"{task}/keys.py: the key {row.path} stands twice")
        table[row.path] = row
    for path in (*keys.defaults, *keys.choices, *keys.reads, *keys.unread):
        if path not in table:
            raise ConfigError(f"{task}/keys.py: {path} is changed, but it is no key of {task}")
    return {path: _changed(task, row, keys) for path, row in table.items()}


def _changed(task: str, row: Key, keys: TaskKeys) -> Key:
    """Returns the row as the task has it."""
    row = replace(
        row,
        default=keys.defaults.get(row.path, row.default),
        choices=keys.choices.get(row.path, row.choices),
        read=(row.read or row.path in keys.reads) and row.path not in keys.unread,
    )
    try:
        return replace(row, default=CONVERTERS[row.type](row.default))
    except (KeyError, TypeError, ValueError):
        problem = f"{row.path} has the type {row.type!r} and the default {row.default!r}"
        raise ConfigError(f"{task}/keys.py: {problem}, which do not fit each other") from None


def tasks_with(path: str) -> list[str]:
    """Returns the names of the tasks that have a key."""
    names = []
    for task in task_names():
        try:
            keys = load_keys(task)
        except ConfigError:  # a task without keys has no key
            continue
        if path in paths((*COMMON_KEYS, *keys.rows)):
            names.append(task)
    return names


def table_path(path: str) -> str:
    """Returns the row of a dotted key: DATASET[1].SEQ and DATASET.1.SEQ are both DATASET.SEQ."""
    return re.sub(r"^DATASET(\[\d+\]|\.\d+)", "DATASET", path)


def unread_keys(task: str, given_keys: Iterable[str]) -> list[str]:
    """Returns those of the given keys, in the order given, that `task` has and whose values have no effect."""
    table = key_table(task)
    rows = dict.fromkeys(table_path(path) for path in given_keys)
    return [path for path in rows if path in table and not table[path].has_effect]

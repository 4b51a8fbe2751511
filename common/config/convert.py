"""Converters: from a value of a YAML file to the type that a key declares. Each raises TypeError or ValueError."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _int(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError
    return value


def _float(value: Any) -> float:
    """Accepts texts too, because YAML 1.1 reads 1e-7 (no decimal point) as a text."""
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
    """A pair is a list of two, or the text "name,value" of the published files."""

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
    """Accepts 14, [14, 18] or the text "14,18" of the published files."""
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    return _list(_float)(value if isinstance(value, (list, tuple)) else [value])


def _loss_scale(value: Any) -> float | str:
    return value if value == "dynamic" else _float(value)


# Name of a type, as `Key.type` has it -> converter.
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

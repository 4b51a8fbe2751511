"""Pickles of plain data, read without running code: containers, numbers, strings and numpy arrays only."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError

# The classes of the data sets' files. Any other class is refused by name.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),  # arrays under protocol 5
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("builtins", "list"),
    ("builtins", "dict"),
    ("builtins", "set"),
    ("__builtin__", "list"),
    ("__builtin__", "dict"),
    ("__builtin__", "set"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a data file has no use for")
        return super().find_class(module, name)


def load_pickle(path: Path | str, encoding: str = "ASCII") -> Any:
    """Reads a pickle of plain data. Raises DataError naming the file when it is broken or names another class."""
    return _load(Path(path).read_bytes(), path, encoding)


def load_object_array(path: Path | str) -> np.ndarray:
    """Reads a .npy file of pickled objects (imdb files). Raises DataError as load_pickle does."""
    with open(path, "rb") as f:
        try:
            version = np.lib.format.read_magic(f)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(f)
        except ValueError as error:
            raise DataError(f"{path}: not a .npy file ({error})") from error
        if not dtype.hasobject:
            raise DataError(f"{path}: expected an array of objects, found dtype {dtype}")
        array = _load(f.read(), path, "latin1")
    if not isinstance(array, np.ndarray) or array.size != np.prod(shape):
        raise DataError(f"{path}: expected an array of shape {shape} inside, found {type(array).__name__}")
    return array.reshape(shape)


def _load(content: bytes, path: Path | str, encoding: str) -> Any:
    try:
        return _Unpickler(io.BytesIO(content), encoding=encoding).load()
    except Exception as error:  # a damaged pickle may fail in any way
        raise DataError(f"{path}: cannot be read as plain data: {error}") from error

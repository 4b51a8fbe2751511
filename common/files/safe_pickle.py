"""Pickles of plain data, read without running code: containers, numbers, strings and numpy arrays only."""

from __future__ import annotations

import io
import pickle
import pickletools
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


# Bytes of an argument by opcode; negative where the argument states its own length (pickletools.ArgumentDescriptor).
_ARGUMENT = [0] * 256
_KNOWN = bytearray(256)
for _op in pickletools.opcodes:
    _ARGUMENT[ord(_op.code)] = _op.arg.n if _op.arg else 0
    _KNOWN[ord(_op.code)] = 1
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_LINES = {ord("i"): 2, ord("c"): 2}  # opcodes with two lines as argument
_PUT, _LONG_BINPUT, _STOP = ord("p"), ord("r"), ord(".")


def _check_memo(content: bytes) -> None:
    """Raises UnpicklingError for a memo number beyond the length of the file.

    The unpickler makes an array of this length: eight bytes of a damaged file would take gigabytes.
    """
    position, end = 0, len(content)
    while position < end:
        op = content[position]
        position += 1
        if op == _STOP:
            return
        if not _KNOWN[op]:
            raise pickle.UnpicklingError(f"byte {position - 1} is no opcode")
        size = _ARGUMENT[op]
        if size == pickletools.UP_TO_NEWLINE:
            start = position
            for _ in range(_LINES.get(op, 1)):
                position = content.find(b"\n", position) + 1 or end
            number = int(content[start:position]) if op == _PUT else 0
        elif size < 0:
            width = _LENGTH_BYTES[size]
            position += width + int.from_bytes(content[position : position + width], "little")
            continue
        else:
            number = int.from_bytes(content[position : position + 4], "little") if op == _LONG_BINPUT else 0
            position += size
        if number > end:
            raise pickle.UnpicklingError(f"memo number {number} in a file of {end} bytes")


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
        _check_memo(content)
        return _Unpickler(io.BytesIO(content), encoding=encoding).load()
    except Exception as error:  # a damaged pickle may fail in any way
        raise DataError(f"{path}: cannot be read as plain data: {error}") from error

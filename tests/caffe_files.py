"""Writes Caffe models in the protocol-buffer wire format, for tests."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np


def varint(value: int) -> bytes:
    value %= 2**64
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def tag(number: int, wire: int) -> bytes:
    return varint(number << 3 | wire)


def message(number: int, content: bytes) -> bytes:
    """A field of bytes: a submessage, text or packed numbers."""
    return tag(number, 2) + varint(len(content)) + content


def integer(number: int, value: int) -> bytes:
    return tag(number, 0) + varint(value)


def blob_shape(shape: Sequence[int]) -> bytes:
    return message(7, message(1, b"".join(varint(size) for size in shape)))


def legacy_shape(shape: Sequence[int]) -> bytes:
    sizes = [*[1] * (4 - len(shape)), *shape]
    return b"".join(integer(i + 1, size) for i, size in enumerate(sizes))


def packed(array: np.ndarray) -> bytes:
    return message(5, array.astype("<f4").tobytes())


def unpacked(array: np.ndarray) -> bytes:
    return b"".join(tag(5, 5) + struct.pack("<f", x) for x in array.ravel())


def doubles(array: np.ndarray) -> bytes:
    return message(8, array.astype("<f8").tobytes())


def unpacked_doubles(array: np.ndarray) -> bytes:
    return b"".join(tag(8, 1) + struct.pack("<d", x) for x in array.ravel())


def blob(array: np.ndarray) -> bytes:
    return blob_shape(array.shape) + packed(array)


def layer(name: str, *blobs: bytes) -> bytes:
    """Of the newer list."""
    content = message(1, name.encode()) + message(2, b"Convolution")
    return message(100, content + b"".join(message(7, b) for b in blobs))


def v1_layer(name: str, *blobs: bytes) -> bytes:
    """Of the older list."""
    content = message(2, b"data") + message(3, b"top") + message(4, name.encode()) + integer(5, 4)
    return message(2, content + b"".join(message(6, b) for b in blobs))


def caffemodel(blobs: Mapping[str, Sequence[np.ndarray]]) -> bytes:
    """A model of the newer list with these blobs."""
    return message(1, b"net") + b"".join(layer(name, *map(blob, arrays)) for name, arrays in blobs.items())

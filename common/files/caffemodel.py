"""Weights of a Caffe model: the blobs of a NetParameter message, read from the protocol-buffer wire format.

Neither Caffe nor generated code is needed. The file is memory-mapped: blobs of aligned, packed floats are views of the
mapping, other blobs are copied once.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import CheckpointError
from common.files.downloads import check_download

VARINT, FIXED64, BYTES, START_GROUP, END_GROUP, FIXED32 = range(6)  # wire types
WIDTHS = {FIXED64: 8, FIXED32: 4}

# Field numbers. The fields `name` and `blobs` of a layer depend on the list: {field of NetParameter: (name, blobs)}.
LAYER_LISTS = {100: (1, 7), 2: (4, 6)}
BLOB_LEGACY_SHAPE, BLOB_DATA, BLOB_SHAPE, BLOB_DOUBLE_DATA = (1, 2, 3, 4), 5, 7, 8
SHAPE_DIM = 1
MAX_DIMS = 32  # as in Caffe
MAX_FIELDS = 1_000_000  # a run of numbers counts as one field; a real model has some thousands


def read_caffemodel(path: str | Path) -> dict[str, list[np.ndarray]]:
    """Returns the blobs of every layer that has any: {layer name: [blob 0, blob 1, ...]}, float32, shape as stored.

    A blob with the deprecated fields num, channels, height and width has these 4 dimensions. Doubles are rounded,
    to infinity where they are too large.
    Raises FileNotFoundError without the file. Raises CheckpointError with the byte offset for a damaged or truncated
    file, for a file of another format, for a file without blobs and for two layers of one name that have blobs.
    """
    check_download(path)
    with open(path, "rb") as f:
        mapping = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)  # writable for torch, the file stays unchanged
    reader = _Reader(path, mapping)
    layers: dict[str, list[np.ndarray]] = {}
    for field in reader.fields(0, len(mapping)):
        if field.number not in LAYER_LISTS:
            continue
        name, blobs = _layer(reader, field, *LAYER_LISTS[field.number])
        if blobs and name in layers:
            raise reader.error(field.at, f"a second layer {name!r} with blobs")
        if blobs:
            layers[name] = blobs
    if not layers:
        raise reader.error(len(mapping), "no layer with blobs in the whole file; expected the weights of a Caffe model")
    return layers


@dataclass(frozen=True)
class _Field:
    """A field of a message, or a run of neighbouring fields of fixed width with the same tag.

    at: offset of the (first) tag. start, end: offsets of the content, of a run those of the fields with their tags.
    value: of a varint. tag_size: bytes of each tag.
    """

    number: int
    wire: int
    at: int
    start: int
    end: int
    value: int = 0
    tag_size: int = 1


class _Reader:
    """The wire format of a file. All offsets are of the whole file."""

    def __init__(self, path: str | Path, mapping: mmap.mmap) -> None:
        self._path, self._mapping, self._num_fields = path, mapping, 0

    def error(self, at: int, problem: str) -> CheckpointError:
        return CheckpointError(f"weights {self._path}: byte {at}: {problem}")

    def fields(self, start: int, end: int) -> Iterator[_Field]:
        """Yields the fields of the message in bytes start to end. Groups are skipped."""
        at = start
        while at < end:
            field = self._field(at, end)
            if field.wire == START_GROUP:
                field = self._group(field, end)
            elif field.wire == END_GROUP:
                raise self.error(at, "the end of a group that did not start; no Caffe model, or damaged")
            else:
                yield field
            at = field.end

    def submessage(self, field: _Field, what: str) -> Iterator[_Field]:
        self.expect(field, BYTES, what)
        return self.fields(field.start, field.end)

    def expect(self, field: _Field, wire: int, what: str) -> None:
        if field.wire != wire:
            raise self.error(field.at, f"{what} (field {field.number}) has wire type {field.wire}, expected {wire}")

    def text(self, field: _Field, what: str) -> str:
        self.expect(field, BYTES, what)
        try:
            return self._mapping[field.start : field.end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(field.start + error.start, f"{what} is not UTF-8 text") from error

    def integers(self, field: _Field, what: str) -> list[int]:
        """The signed integers of a varint or of packed varints."""
        if field.wire == VARINT:
            return [_signed(field.value)]
        self.expect(field, BYTES, what)
        values: list[int] = []
        at = field.start
        while at < field.end and len(values) <= MAX_DIMS:
            value, at = self._varint(at, field.end)
            values.append(_signed(value))
        return values

    def floats(self, field: _Field, number: np.dtype, what: str) -> np.ndarray:
        """The numbers of a packed field or of a run of unpacked ones, as a view of the file."""
        width = number.itemsize
        if field.wire == BYTES:
            count, rest = divmod(field.end - field.start, width)
            if rest:
                raise self.error(field.at, f"{what} has {field.end - field.start} bytes, no multiple of {width}")
            return np.frombuffer(self._mapping, number, count, field.start)
        if WIDTHS.get(field.wire) != width:
            raise self.error(field.at, f"{what} (field {field.number}) has wire type {field.wire}")
        record = np.dtype([("tag", np.uint8, (field.tag_size,)), ("number", number)])
        return np.frombuffer(self._mapping, record, (field.end - field.start) // record.itemsize, field.start)["number"]

    def _field(self, at: int, end: int) -> _Field:
        """The field whose tag is at `at`, inside a message that ends at `end`."""
        self._num_fields += 1
        if self._num_fields > MAX_FIELDS:
            raise self.error(at, f"more than {MAX_FIELDS} fields; no Caffe model")
        tag, start = self._varint(at, end)
        number, wire = tag >> 3, tag & 7
        if number == 0 or wire > FIXED32:
            raise self.error(at, f"field {number} of wire type {wire} cannot be; no Caffe model, or damaged")
        if wire == VARINT:
            value, stop = self._varint(start, end)
            return _Field(number, wire, at, start, stop, value)
        if wire in WIDTHS:
            self._enough(at, number, WIDTHS[wire], end - start)
            return _Field(number, wire, at, at, self._end_of_run(at, start, WIDTHS[wire], end), tag_size=start - at)
        if wire == BYTES:
            length, start = self._varint(start, end)
            self._enough(at, number, length, end - start)
            return _Field(number, wire, at, start, start + length)
        return _Field(number, wire, at, start, start)  # a group starts or ends

    def _enough(self, at: int, number: int, needed: int, left: int) -> None:
        if needed > left:
            raise self.error(at, f"field {number} has {needed} bytes, but {left} are left; truncated or damaged")

    def _end_of_run(self, at: int, start: int, width: int, end: int) -> int:
        """The end of the run of equal tags and numbers of `width` bytes whose first tag is in bytes at to start."""
        tag = np.frombuffer(self._mapping, np.uint8, start - at, at)
        record = len(tag) + width
        run, block = 1, 64
        while (count := min(block, (end - at) // record - run)) > 0:
            records = np.frombuffer(self._mapping, np.uint8, count * record, at + run * record).reshape(count, record)
            equal = (records[:, : len(tag)] == tag).all(axis=1)
            if not equal.all():
                return at + (run + int(equal.argmin())) * record
            run, block = run + count, 2 * block
        return at + run * record

    def _group(self, first: _Field, end: int) -> _Field:
        """The field at the end of a group."""
        open_groups, field = [first.number], first
        while open_groups:
            if field.end >= end:
                raise self.error(first.at, f"the group of field {first.number} does not end; truncated or damaged")
            field = self._field(field.end, end)
            if field.wire == START_GROUP:
                open_groups.append(field.number)
            elif field.wire == END_GROUP and field.number != open_groups.pop():
                raise self.error(field.at, f"the end of group {field.number} inside of another; no Caffe model")
        return field

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """The integer at `at` and the offset behind it."""
        value = 0
        for i in range(10):
            if at + i >= end:
                raise self.error(at, "a number runs over the end of its message; truncated or damaged")
            byte = self._mapping[at + i]
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                return value & (2**64 - 1), at + i + 1
        raise self.error(at, "a number of more than 10 bytes; no Caffe model, or damaged")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _layer(reader: _Reader, layer: _Field, name_field: int, blobs_field: int) -> tuple[str, list[np.ndarray]]:
    name, found = "", []
    for field in reader.submessage(layer, "a layer"):
        if field.number == name_field:
            name = reader.text(field, "the name of a layer")
        elif field.number == blobs_field:
            found.append(field)
    if found and not name:
        raise reader.error(layer.at, "a layer with blobs and without a name")
    return name, [_blob(reader, field, f"blob {i} of layer {name!r}") for i, field in enumerate(found)]


def _blob(reader: _Reader, blob: _Field, what: str) -> np.ndarray:
    shape: list[int] | None = None
    legacy = dict.fromkeys(BLOB_LEGACY_SHAPE, 0)
    singles: list[np.ndarray] = []
    doubles: list[np.ndarray] = []
    is_legacy = False
    for field in reader.submessage(blob, what):
        if field.number == BLOB_SHAPE:
            shape = (shape or []) + _dims(reader, field, what)
        elif field.number in legacy:
            reader.expect(field, VARINT, f"the shape of {what}")
            legacy[field.number], is_legacy = _signed(field.value), True
        elif field.number == BLOB_DATA:
            singles.append(reader.floats(field, np.dtype("<f4"), what))
        elif field.number == BLOB_DOUBLE_DATA:
            doubles.append(reader.floats(field, np.dtype("<f8"), what))
    if singles and doubles:
        raise reader.error(blob.at, f"{what} has floats and doubles")
    if shape is None:
        shape = list(legacy.values()) if is_legacy else []
    return _shaped(reader, blob, what, singles or doubles, shape)


def _dims(reader: _Reader, shape: _Field, what: str) -> list[int]:
    dims: list[int] = []
    for field in reader.submessage(shape, f"the shape of {what}"):
        if field.number == SHAPE_DIM:
            dims += reader.integers(field, f"the shape of {what}")
        if len(dims) > MAX_DIMS:
            raise reader.error(shape.at, f"{what} has more than {MAX_DIMS} dimensions")
    return dims


def _shaped(reader: _Reader, blob: _Field, what: str, pieces: list[np.ndarray], shape: list[int]) -> np.ndarray:
    """The numbers of a blob in its shape."""
    count = sum(len(piece) for piece in pieces)
    if any(size < 0 for size in shape) or math.prod(shape) != count or not count:
        raise reader.error(blob.at, f"{what} has {count} numbers, its shape is {shape}")
    numbers = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    with np.errstate(over="ignore"):  # of doubles that are no floats
        return np.require(numbers, np.float32, ["C", "A"]).reshape(shape)

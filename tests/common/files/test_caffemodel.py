"""Caffe models: golden files where they lie beside the checkout, and files that the tests write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import CheckpointError
from common.files.caffemodel import read_caffemodel
from tests import caffe_files as caffe
from tests.paths import ROOT

GOLDEN = ROOT.parent / "shared" / "golden" / "L_detector"
RNG = np.random.default_rng(0)
CONV = RNG.standard_normal((4, 3, 2, 2)).astype(np.float32)
BIAS = RNG.standard_normal(4).astype(np.float32)


def read(tmp_path: Path, content: bytes) -> dict[str, list[np.ndarray]]:
    (tmp_path / "a.caffemodel").write_bytes(content)
    return read_caffemodel(tmp_path / "a.caffemodel")


def assert_blobs(found: list[np.ndarray], *wanted: np.ndarray) -> None:
    assert len(found) == len(wanted)
    for blob, want in zip(found, wanted, strict=True):
        assert blob.dtype == np.float32 and blob.shape == want.shape
        np.testing.assert_array_equal(blob, want)


@pytest.mark.parametrize("name", ["small", "small_v1"])
def test_golden_files(name: str):
    if not GOLDEN.is_dir():
        pytest.skip(f"no reference numbers in {GOLDEN}: the golden Caffe models were not read")
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    layers = read_caffemodel(GOLDEN / case["file"])
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        assert {f"{key}.{i}" for key, blobs in layers.items() for i in range(len(blobs))} == set(arrays)
        for key, want in arrays.items():
            layer, index = key.rsplit(".", 1)
            np.testing.assert_array_equal(layers[layer][int(index)], want, strict=True)


@pytest.mark.parametrize("layer", [caffe.layer, caffe.v1_layer])
def test_both_lists_of_layers(tmp_path, layer):
    content = layer("data") + layer("conv1", caffe.blob(CONV), caffe.blob(BIAS)) + layer("ip/2", caffe.blob(2 * BIAS))
    layers = read(tmp_path, content)
    assert list(layers) == ["conv1", "ip/2"]
    assert_blobs(layers["conv1"], CONV, BIAS)
    assert_blobs(layers["ip/2"], 2 * BIAS)


def test_a_file_with_both_lists(tmp_path):
    layers = read(tmp_path, caffe.v1_layer("a", caffe.blob(CONV)) + caffe.layer("b", caffe.blob(BIAS)))
    assert list(layers) == ["a", "b"]


def test_the_deprecated_shape_has_four_dimensions(tmp_path):
    blobs = [caffe.legacy_shape(x.shape) + caffe.packed(x) for x in (CONV, CONV[:, :, 0, 0], BIAS)]
    wanted = (CONV, CONV[:, :, 0, 0].reshape(1, 1, 4, 3), BIAS.reshape(1, 1, 1, 4))
    assert_blobs(read(tmp_path, caffe.layer("a", *blobs))["a"], *wanted)


def test_a_blob_without_a_shape_is_one_number(tmp_path):
    assert_blobs(read(tmp_path, caffe.layer("a", caffe.packed(BIAS[:1])))["a"], BIAS[0])


@pytest.mark.parametrize(
    "numbers",
    [
        caffe.packed,
        caffe.unpacked,
        caffe.doubles,
        caffe.unpacked_doubles,
        lambda x: caffe.packed(x.ravel()[:5]) + caffe.unpacked(x.ravel()[5:30]) + caffe.packed(x.ravel()[30:]),
    ],
    ids=["packed", "unpacked", "doubles", "unpacked doubles", "in pieces"],
)
def test_encodings_of_the_numbers(tmp_path, numbers):
    data = numbers(CONV)
    for content in (data + caffe.blob_shape(CONV.shape), caffe.blob_shape(CONV.shape) + data):
        assert_blobs(read(tmp_path, caffe.layer("a", content))["a"], CONV)


def test_a_long_run_of_unpacked_numbers_ends_where_the_tag_changes(tmp_path):
    array = RNG.standard_normal(1000).astype(np.float32)
    layers = read(tmp_path, caffe.layer("a", caffe.unpacked(array) + caffe.blob_shape(array.shape) + b"\x30\x07"))
    assert_blobs(layers["a"], array)


def test_doubles_are_rounded(tmp_path):
    layers = read(tmp_path, caffe.layer("a", caffe.blob_shape([1]) + caffe.doubles(np.array([1 / 3]))))
    assert_blobs(layers["a"], np.array([1 / 3], np.float32))


@pytest.mark.filterwarnings("error")
def test_doubles_beyond_the_floats_are_infinite(tmp_path):
    layers = read(tmp_path, caffe.layer("a", caffe.blob_shape([1]) + caffe.doubles(np.array([1e300]))))
    assert_blobs(layers["a"], np.array([np.inf], np.float32))


def test_unpacked_dimensions(tmp_path):
    shape = caffe.message(7, caffe.integer(1, 2) + caffe.integer(1, 2))
    assert_blobs(read(tmp_path, caffe.layer("a", shape + caffe.packed(BIAS)))["a"], BIAS.reshape(2, 2))


UNKNOWN = {
    "varint": caffe.integer(31, 2**40),
    "fixed64": caffe.tag(31, 1) + bytes(8),
    "bytes": caffe.message(31, b"anything"),
    "group": caffe.tag(31, 3) + caffe.message(7, b"x") + caffe.tag(4, 3) + caffe.tag(4, 4) + caffe.tag(31, 4),
    "fixed32": caffe.tag(31, 5) + bytes(4),
}


@pytest.mark.parametrize("field", UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_fields_are_skipped(tmp_path, field):
    inner = field + caffe.blob_shape(BIAS.shape) + field + caffe.packed(BIAS) + field
    layer = caffe.message(100, field + caffe.message(1, b"a") + field + caffe.message(7, inner) + field)
    assert_blobs(read(tmp_path, field + layer + field)["a"], BIAS)


def test_blobs_are_views_of_the_mapped_file_and_may_be_changed(tmp_path):
    for pad in range(4):  # one of these makes the numbers aligned
        content = caffe.message(1, b"n" * pad) + caffe.layer("a", caffe.blob(CONV))
        blob = read(tmp_path, content)["a"][0]
        assert blob.flags.aligned and blob.flags.writeable
        blob[:] = 0
        assert (tmp_path / "a.caffemodel").read_bytes() == content


def test_names_are_not_repeated_among_layers_with_blobs(tmp_path):
    two = caffe.layer("a", caffe.blob(BIAS))
    with pytest.raises(CheckpointError, match=rf"a\.caffemodel: byte {len(two)}: a second layer 'a' with blobs"):
        read(tmp_path, two + caffe.v1_layer("a", caffe.blob(BIAS)))
    assert list(read(tmp_path, caffe.layer("a") + two + caffe.layer("a"))) == ["a"]


def layer_of(blob: bytes) -> bytes:
    return caffe.layer("a", blob)


BLOB = 2 + 1 + 3 + 13  # the offset of the first blob: behind tag, length, name and type of the layer
IN_BLOB = BLOB + 2
GOOD = layer_of(caffe.blob(BIAS))
DAMAGED = {
    "no blobs": (caffe.layer("data"), len(caffe.layer("data")), "no layer with blobs"),
    "zeros": (bytes(100), 0, "field 0 of wire type 0"),
    "text": (b"hello world", 2, "the end of a group"),
    "zip": (b"PK\x03\x04" + bytes(40), 2, "field 0 of wire type 3"),
    "a pickle": (b"\x80\x02}q\x00.", 3, "field 14 has 8 bytes"),
    "no shape": (layer_of(caffe.packed(BIAS)), BLOB, r"blob 0 of layer 'a' has 4 numbers, its shape is \[\]"),
    "a shape of others": (
        layer_of(caffe.blob_shape([2**40, 2**40]) + caffe.packed(BIAS)),
        BLOB,
        r"blob 0 of layer 'a' has 4 numbers, its shape is \[1099511627776, 1099511627776\]",
    ),
    "a negative shape": (layer_of(caffe.blob_shape([-2, -2]) + caffe.packed(BIAS)), BLOB, r"its shape is \[-2, -2\]"),
    "no numbers": (layer_of(caffe.blob_shape([0])), BLOB, r"has 0 numbers, its shape is \[0\]"),
    "dimensions": (layer_of(caffe.blob_shape([1] * 40) + caffe.packed(BIAS[:1])), IN_BLOB, "more than 32 dimensions"),
    "floats and doubles": (
        layer_of(caffe.blob_shape([4]) + caffe.packed(BIAS) + caffe.doubles(BIAS)),
        BLOB,
        "has floats and",
    ),
    "a part of a float": (layer_of(caffe.message(5, bytes(7))), IN_BLOB, "has 7 bytes, no multiple of 4"),
    "integers as data": (layer_of(caffe.integer(5, 1)), IN_BLOB, r"\(field 5\) has wire type 0"),
    "no name": (caffe.message(100, caffe.message(7, caffe.blob(BIAS))), 0, "a layer with blobs and without a name"),
    "a wrong name": (caffe.message(100, caffe.message(1, b"ab\xff")), 7, "the name of a layer is not UTF-8"),
    "an integer as layer": (caffe.integer(100, 3), 0, r"a layer \(field 100\) has wire type 0, expected 2"),
    "a long number": (caffe.tag(9, 0) + b"\xff" * 12, 1, "a number of more than 10 bytes"),
    "a group's end": (GOOD + caffe.tag(9, 4), len(GOOD), "the end of a group that did not start"),
    "an open group": (GOOD + caffe.tag(9, 3), len(GOOD), "the group of field 9 does not end"),
    "a huge length": (caffe.tag(100, 2) + caffe.varint(2**62), 0, "has 4611686018427387904 bytes, but 0 are left"),
    "too many fields": (caffe.integer(9, 0) * 1_000_001, 2_000_000, "more than 1000000 fields"),
    "a web page": (b"<!doctype html>", 0, "a web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", 0, "a git-lfs pointer"),
    "nothing": (b"", 0, "the file is empty"),
}


@pytest.mark.parametrize(("content", "at", "problem"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_and_files_of_other_formats(tmp_path, content, at, problem):
    with pytest.raises(CheckpointError, match=rf"weights .*a\.caffemodel: byte {at}: .*{problem}") as error:
        read(tmp_path, content)
    assert "\n" not in str(error.value)


def test_a_file_truncated_anywhere(tmp_path):
    whole = layer_of(caffe.blob(BIAS)) + caffe.v1_layer("b", caffe.legacy_shape([4]) + caffe.unpacked(BIAS))
    boundary = len(layer_of(caffe.blob(BIAS)))
    for length in set(range(len(whole))) - {boundary}:
        with pytest.raises(CheckpointError, match="byte"):
            read(tmp_path, whole[:length])


def test_a_byte_changed_anywhere_never_ends_in_another_error(tmp_path):
    whole = layer_of(caffe.blob(BIAS)) + caffe.v1_layer("b", caffe.legacy_shape([4]) + caffe.unpacked(BIAS))
    refused = 0
    for at in range(len(whole)):
        for value in (0x00, 0x7F, 0x80, 0xFF):
            try:
                read(tmp_path, whole[:at] + bytes([value]) + whole[at + 1 :])
            except CheckpointError:
                refused += 1
    assert refused > 100


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.caffemodel: no such file"):
        read_caffemodel(tmp_path / "a.caffemodel")

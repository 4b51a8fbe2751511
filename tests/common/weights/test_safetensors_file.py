"""State dicts as .safetensors files."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import CheckpointError
from common.weights.safetensors_file import read_safetensors, write_safetensors


def test_a_tensor_with_two_keys_is_stored_once(tmp_path):
    tied = torch.arange(6.0).reshape(2, 3)
    state = {
        "a": tied,
        "b": tied,
        "transposed": tied.t(),
        "part": tied[0],
        "empty": torch.zeros(0),
        "n": torch.tensor(3),
    }
    write_safetensors(tmp_path / "a.safetensors", state)
    assert load_file(tmp_path / "a.safetensors").keys() == state.keys() - {"b"}
    got = read_safetensors(tmp_path / "a.safetensors")
    assert got.keys() == state.keys() and all(torch.equal(got[key], state[key]) for key in state)


def test_a_bad_file_is_told(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"a.safetensors: cannot be read"):
        read_safetensors(tmp_path / "a.safetensors")
    with pytest.raises(FileNotFoundError, match=r"b.safetensors: no such file"):
        read_safetensors(tmp_path / "b.safetensors")


def test_a_damaged_tensor_is_named(tmp_path):
    path, numbers = tmp_path / "a.safetensors", torch.arange(100.0)
    write_safetensors(path, {"a": torch.ones(3), "b": numbers, "c": numbers})
    content = path.read_bytes()
    where = content.index(numbers.numpy().tobytes()) + 40
    path.write_bytes(content[:where] + b"?" + content[where + 1 :])
    assert not torch.equal(load_file(path)["b"], numbers)
    with pytest.raises(CheckpointError, match=r"a.safetensors: damaged, .*: 1 of 2 tensors: b$"):
        read_safetensors(path)


def test_a_file_without_checksums_loads(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors", {"format": "pt"})
    assert torch.equal(read_safetensors(tmp_path / "a.safetensors")["a"], torch.ones(3))


def test_equal_weights_give_equal_files(tmp_path):
    """The order of metadata in safetensors is random."""
    files = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for path in files:
        write_safetensors(path, {"a": torch.ones(3), "b": torch.zeros(2)})
    assert len({path.read_bytes() for path in files}) == 1

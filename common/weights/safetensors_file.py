"""State dicts as .safetensors files. A tensor with several keys is stored once, and the file lists its other keys.

The metadata of a file have a checksum of each tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from common.errors import CheckpointError
from common.weights.checksums import describe, tensor_checksum

WEIGHTS = "model.safetensors"  # of a model folder
SAME = "same_tensors"  # metadata: JSON of key -> key of the stored tensor
CHECKSUMS = "checksums"  # metadata: JSON of key -> CRC-32 of the stored tensor


def write_safetensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict. The caller makes the file complete or absent, as `new_folder` does."""
    from safetensors.torch import save_file

    stored: dict[str, Tensor] = {}
    same: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    for key, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in first:
            same[key] = first[place]
        else:
            first[place] = key
            stored[key] = tensor.detach().cpu().clone().contiguous()
    checksums = {key: tensor_checksum(tensor) for key, tensor in stored.items()}
    save_file(stored, path, {"format": "pt", SAME: json.dumps(same), CHECKSUMS: json.dumps(checksums)})
    _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata, whose order is random in safetensors, so that equal state dicts give equal files."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # the header ends in spaces
            file.seek(8)
            file.write(text.ljust(size))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The state dict of a file, with all keys of each tensor. Checksums in the file are verified.

    Raises FileNotFoundError without the file, CheckpointError where it cannot be read or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"weights {path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
            metadata = file.metadata() or {}
        same, checksums = (json.loads(metadata.get(name, "{}")) for name in (SAME, CHECKSUMS))
        damaged = [key for key, then in checksums.items() if key not in state or tensor_checksum(state[key]) != then]
        if damaged:
            text = describe(damaged, len(checksums))
            raise CheckpointError(f"weights {path}: damaged, other checksums than when it was written: {text}")
        return {**state, **{key: state[name] for key, name in same.items()}}
    except CheckpointError:
        raise
    except (SafetensorError, KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(f"weights {path}: cannot be read ({error})") from error

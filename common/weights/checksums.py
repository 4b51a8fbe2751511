"""Checksums of what a checkpoint holds: CRC-32 of each tensor, and one of all the rest.

PyTorch's serialisation before 1.6 and safetensors have none. A checkpoint of VL-BERT base with its optimizer, 1.8 GB,
takes about half a second.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def tensor_checksum(tensor: Tensor) -> int:
    """CRC-32 of the elements in row-major order."""
    return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def content_checksums(content: Mapping[str, Any]) -> dict[str, Any]:
    """{"tensors": path -> checksum, "rest": checksum} of nested dicts, lists and tuples.

    "rest" is the checksum of all paths, of the types and shapes of tensors, and of other values. A path has the keys
    with slashes between them.
    """
    tensors: dict[str, int] = {}
    rest = 0
    for path, value in _leaves(content, ""):
        if isinstance(value, Tensor):
            tensors[path] = tensor_checksum(value)
            value = (str(value.dtype), tuple(value.shape))
        rest = zlib.crc32(f"{path}={value!r}\n".encode("utf-8", "backslashreplace"), rest)
    return {"tensors": tensors, "rest": rest}


def damage(content: Mapping[str, Any], stored: Any) -> str:
    """Names what differs from the checksums that a file stores, "" where nothing does."""
    now = content_checksums(content)
    if stored == now:
        return ""
    then = stored.get("tensors") if isinstance(stored, Mapping) else None
    if not isinstance(then, Mapping):
        return "its checksums"
    return describe([k for k, v in now["tensors"].items() if then.get(k) != v], len(now["tensors"])) or "its structure"


def describe(names: Sequence[str], count: int) -> str:
    """For an error: the first of the damaged tensors, "" without any. count: of all tensors."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} of {count} tensors: {', '.join(names[:3])}{more}" if names else ""


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Paths and values of everything that is no container, or an empty one."""
    if isinstance(value, Mapping) and value:
        for key, entry in value.items():
            yield from _leaves(entry, f"{path}/{key}" if path else str(key))
    elif isinstance(value, (list, tuple)) and value:
        for number, entry in enumerate(value):
            yield from _leaves(entry, f"{path}/{number}")
    else:
        yield path, value

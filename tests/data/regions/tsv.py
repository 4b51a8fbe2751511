"""Rows of the public TSV files."""

from __future__ import annotations

import base64

import numpy as np

from common.regions.regions import Regions


def text(values: np.ndarray, dtype: str = "<f4") -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype)).decode()


def attention_row(image_id: str, regions: Regions) -> list[str]:
    """The six columns of bottom-up-attention."""
    regions = regions.in_memory()
    size = [str(regions.width), str(regions.height)]
    arrays = [text(regions.boxes.numpy()), text(regions.features.numpy())]  # type: ignore[union-attr]
    return [image_id, *size, str(len(regions.boxes)), *arrays]


def lxmert_row(image_id: str, regions: Regions) -> list[str]:
    """The ten columns of LXMERT. The height is before the width."""
    count = len(regions.boxes)
    ids, confidences = text(np.arange(count), "<i8"), text(np.full(count, 0.5))
    _, width, height, *arrays = attention_row(image_id, regions)
    return [image_id, height, width, ids, confidences, ids, confidences, *arrays]


def lines(*rows: list[str]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)

"""The region store at a path, in whatever form it is stored."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from common.regions.json_store import JsonRegions
from common.regions.packed_store import PackedRegions
from common.regions.regions import RegionStore

logger = logging.getLogger(__name__)


def open_regions(path: str | Path, zip_mode: bool = False) -> RegionStore:
    """Opens the store at `path`: an explicit `.packed` folder, `.zip` or folder, or a path without ending.

    Without ending the order is `<path>.packed`; `<path>.zip` with zip_mode; the folder `<path>`; `<path>.zip`.
    Raises FileNotFoundError listing what was looked for, and RegionError for a damaged packed store.
    """
    text = str(path).rstrip("/")
    candidates = [f"{text}.packed", text, f"{text}.zip"]
    if zip_mode:
        candidates[1:] = reversed(candidates[1:])
    if text.endswith((".packed", ".zip")):
        candidates = [text]
    for candidate in candidates:
        if not os.path.exists(candidate):
            continue
        logger.info("regions from %s", candidate)
        return PackedRegions(candidate) if candidate.endswith(".packed") else JsonRegions(candidate)
    raise FileNotFoundError(f"no region files; looked for {', '.join(candidates)}")

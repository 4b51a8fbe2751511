"""The section DATASET of a config. Nothing here imports torch, which may not work where `common.doctor` looks."""

from __future__ import annotations

from typing import Any


def dataset_sections(cfg: Any) -> list[Any]:
    """The section DATASET of a config; of a list (pretraining) all of them, the master first."""
    return list(cfg.DATASET) if isinstance(cfg.DATASET, list | tuple) else [cfg.DATASET]

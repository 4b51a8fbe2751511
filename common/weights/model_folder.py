"""A checkpoint as a file, or as the model folder that `python -m common.export` writes. docs/own_data.md lists it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.config import read_model_config
from common.errors import CheckpointError
from common.files.json_files import read_json
from common.weights.checkpoint import load_file
from common.weights.safetensors_file import WEIGHTS, read_safetensors

CONFIG = "config.yaml"
RECORD = "checkpoint.json"
CLASSES = "classes.txt"
# The entries of a checkpoint about its making.
RECORDED = ("validation_monitor", "made_with", "text_files")


def read_checkpoint(path: Path) -> Any:
    """The content of a checkpoint file, or of a model folder in the same form: state_dict, config, task and a record.

    Values of the config that name files of the folder have its path.
    Raises FileNotFoundError where a file is missing, CheckpointError or ConfigError where one cannot be read.
    """
    if not path.is_dir():
        return load_file(path)
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"checkpoint {path}: a folder without {CONFIG}: expected a file, or a model folder")
    task, config = read_model_config(path / CONFIG)
    record = read_json(path / RECORD) if (path / RECORD).is_file() else {}
    return {"state_dict": read_safetensors(path / WEIGHTS), "config": config, "task": task, **record}


def record_of(content: Any) -> dict[str, Any]:
    """What the content of a checkpoint says about its making; empty for a file of other code."""
    return {k: content[k] for k in RECORDED if k in content} if isinstance(content, dict) else {}

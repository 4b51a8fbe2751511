"""The vocabulary and the other text files of a model: their paths, and a check that they are those of training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config import Config
from common.config.derived import value_at, vocabulary_path
from common.errors import CheckpointError
from common.files.text import BOM
from common.task import Task

VOCABULARY = "NETWORK.BERT_MODEL_NAME"

Digests = dict[str, dict[str, Any]]


def digests(task: Task, cfg: Config) -> Digests:
    """Key of the config -> {"file", "sha256", "length"} of each text file that exists, for a checkpoint."""
    paths = {key: _path(cfg, key) for key in (VOCABULARY, *task.text_files)}
    return {key: digest(path) for key, path in paths.items() if path is not None}


def digest(path: Path) -> dict[str, Any]:
    """{"file": path, "sha256": of the entries, "length": their number}.

    Entries are stripped lines without empty ones at the end. The SHA-256 is that of the file with one entry and "\\n" a
    line, so line ends of another system do not change it.
    """
    entries = [
        line.strip() for line in path.read_bytes().removeprefix(BOM).decode("utf-8", "surrogateescape").split("\n")
    ]
    while entries and not entries[-1]:
        entries.pop()
    text = "".join(f"{entry}\n" for entry in entries)
    return {
        "file": str(path),
        "sha256": hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest(),
        "length": len(entries),
    }


def check_text_files(stored: Mapping[str, Mapping[str, Any]], cfg: Config, source: Path | str) -> None:
    """Compare the text files that `cfg` names with the digests that a checkpoint stores. A missing file is not checked.

    stored: of `digests`; empty for a checkpoint without them. source: the checkpoint, for the error.
    Raises CheckpointError that names both files.
    """
    for key, then in stored.items():
        path = _path(cfg, key)
        if path is None:
            continue
        now = digest(path)
        if now["sha256"] != then["sha256"]:
            raise CheckpointError(
                f"{source}: {key} is {_described(now)}; the model was trained with {_described(then)}. "
                "Ids would stand for other entries: name the file of training"
            )


def _path(cfg: Config, key: str) -> Path | None:
    """The file that a key names, None where there is none."""
    try:
        path = vocabulary_path(cfg) if key == VOCABULARY else Path(value_at(cfg, key))
    except (KeyError, TypeError):
        return None
    return path if path.is_file() else None


def _described(found: Mapping[str, Any]) -> str:
    return f"{found['file']} ({found['length']} entries, SHA-256 {found['sha256'][:12]})"

"""Checkpoint files: written atomically, read without running code from them.

A checkpoint is the dict of the original (state_dict, optimizer, validation_monitor; original 3.20) with three more
entries. `run` is the exact position and state of the run. With `config` and `task` one file is enough to rebuild the
model.
"""

from __future__ import annotations

import glob
import logging
import operator
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor, nn

from common.config.derived import numbered_file
from common.errors import CheckpointError
from common.files.atomic import atomic_write
from common.files.text import START, ZIP, kind_of
from common.weights.checksums import content_checksums, damage

log = logging.getLogger(__name__)

CHECKSUMS = "checksums"  # entry of a checkpoint


def save_file(path: Path, content: Mapping[str, Any], previous: Path | None = None) -> None:
    """Write a checkpoint to `path` completely or not at all.

    Uses the serialisation of PyTorch before 1.6, which the PyTorch of the original can read.
    A content with `state_dict` gets the entry `checksums`.
    previous: second name for the file that is replaced. Raises OSError where the disk does not take the file.
    """
    with atomic_write(path) as f:
        # Files of weights alone stay plain state dicts, whose every entry other programs take for a tensor.
        extra = {CHECKSUMS: content_checksums(content)} if "state_dict" in content else {}
        stream = cast("IO[bytes]", _Stream(f))
        torch.save({**content, **extra}, stream, _use_new_zipfile_serialization=False)
        if previous is not None and path.is_file():
            f.flush()  # the file is complete before the name `previous` moves on
            link(path, previous)


class _Stream:
    """A file without its descriptor, to which PyTorch writes through Python.

    PyTorch writes tensors to a descriptor itself, and raises RuntimeError instead of OSError if that fails.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.write, self.flush = file.write, file.flush


def link(path: Path, second: Path) -> None:
    """Link a finished file under a second name, replacing a file of that name. Copies without hard links."""
    temporary = second.with_name(f".{second.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)
        os.replace(temporary, second)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_file(path: Path) -> Any:
    """Read a file of tensors and plain containers, weights-only. Its checksums, if any, are verified and left out.

    Raises FileNotFoundError without the file, CheckpointError for a damaged file or one that holds code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    with open(path, "rb") as file:
        kind = kind_of(file.read(START))
    if kind and kind != ZIP:  # the format of PyTorch since 1.6 is a zip archive
        raise CheckpointError(f"checkpoint {path}: this is {kind}; expected a file of torch.save")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        why = " ".join([f"{type(error).__name__}:", *str(error).splitlines()[:1]])  # some have no text
        raise CheckpointError(f"checkpoint {path}: cannot be read ({why})") from error
    if isinstance(content, dict) and CHECKSUMS in content:
        damaged = damage(content, content.pop(CHECKSUMS))
        if damaged:
            raise CheckpointError(f"checkpoint {path}: damaged, other checksums than when it was written: {damaged}")
    return content


def strip_module(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix `module.` of parallel wrappers from every key."""
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_model(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a complete state dict, with or without `module.` before its keys.

    Raises CheckpointError naming keys that are missing, unknown or of another shape.
    """
    state = strip_module(state)
    own = model.state_dict()
    problems = [f"missing {k}" for k in own if k not in state]
    problems += [f"unknown {k}" for k in state if k not in own]
    problems += [
        f"{k} is {tuple(state[k].shape)}, the model has {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if problems:
        listed = "; ".join(problems[:8]) + ("; ..." if len(problems) > 8 else "")
        raise CheckpointError(f"{source} does not fit the configured model, {len(problems)} keys: {listed}")
    model.load_state_dict(state)


def epoch_path(directory: Path, prefix: str, epoch: int) -> Path:
    return directory / numbered_file(prefix, epoch)


def best_path(directory: Path, prefix: str) -> Path:
    return directory / f"{prefix}-best.model"


def latest_path(directory: Path, prefix: str) -> Path:
    """The checkpoint of a position inside an epoch."""
    return directory / f"{prefix}-latest.model"


def previous_path(directory: Path, prefix: str) -> Path:
    """The position before the latest one, used where the latest file is damaged."""
    return directory / f"{prefix}-previous.model"


def remove_positions(directory: Path, prefix: str) -> None:
    """Delete the positions inside an epoch, after the end of the epoch was saved."""
    for path in (latest_path(directory, prefix), previous_path(directory, prefix)):
        path.unlink(missing_ok=True)


def remove_older_epochs(directory: Path, prefix: str, keep: int, newest: int) -> None:
    """Delete the checkpoints of epochs up to `newest` except for the last `keep` of them. keep: 0 for all."""
    epochs = sorted((e, p) for p in directory.iterdir() if (e := epoch_of(p, prefix)) is not None and e <= newest)
    for _, path in epochs[:-keep] if keep else ():
        path.unlink(missing_ok=True)


def without_run(content: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a checkpoint that a predictor needs: no optimizer and no position of the run."""
    return {key: value for key, value in content.items() if key not in ("optimizer", "run")}


def epoch_of(path: Path, prefix: str) -> int | None:
    """The epoch in a checkpoint's name, None for other files."""
    match = re.fullmatch(re.escape(prefix) + r"-(\d{4})\.model", path.name)
    return int(match[1]) if match else None


def find_resume(
    directory: Path,
    prefix: str,
    begin_epoch: int,
    end_epoch: int,
    check: Callable[[dict[str, Any], str], None] = lambda content, source: None,
) -> tuple[Path, dict[str, Any]] | None:
    """Path and content of the usable checkpoint with the furthest position, None without any.

    Candidates are the epochs begin_epoch .. end_epoch - 1 and the positions inside an epoch. Damaged files are logged
    and skipped.
    check: takes a content and its file; raises CheckpointError where the run cannot go on from it. If it refuses all
    files that are left, its first error is raised, because a run from the start would overwrite them.
    """
    epochs = (
        {epoch_of(p, prefix): p for p in directory.glob(f"{glob.escape(prefix)}-*.model")} if directory.is_dir() else {}
    )
    refused: list[CheckpointError] = []

    def usable(path: Path, *also: str) -> dict[str, Any] | None:
        content = _readable(path, *also)
        if content is None:
            return None
        try:
            check(content, f"checkpoint {path}")
        except CheckpointError as error:
            log.warning("%s; trying the one before", error)
            refused.append(error)
            return None
        return content

    path, latest = latest_path(directory, prefix), None
    for path in (latest_path(directory, prefix), previous_path(directory, prefix)):
        latest = usable(path, "run") if path.is_file() else None
        if latest is not None:
            break
    reached = _position(latest) if latest is not None else (-1, -1)
    for epoch in sorted((e for e in epochs if e is not None and begin_epoch <= e < end_epoch), reverse=True):
        if (epoch + 1, 0) < reached:
            break
        content = usable(epochs[epoch])
        if content is not None:
            return epochs[epoch], content
    if latest is None and refused:
        raise refused[0]
    return None if latest is None else (path, latest)


def _position(content: dict[str, Any]) -> tuple[int, int]:
    """Epoch and batch of the next batch. Raises KeyError or TypeError for a content without them."""
    position = content["run"]["position"]
    return operator.index(position["epoch"]), operator.index(position["batch"])


def _readable(path: Path, *also: str) -> dict[str, Any] | None:
    """The content of a checkpoint with `state_dict` and the entries `also`. Logs other files and returns None."""
    try:
        content = load_file(path)
    except CheckpointError as error:
        log.warning("%s; trying the one before", error)
        return None
    missing = [k for k in ("state_dict", *also) if not isinstance(content, dict) or k not in content]
    if missing:
        log.warning("checkpoint %s: has no %s; trying the one before", path, " and no ".join(missing))
        return None
    if "run" in content:
        try:
            _position(content)
        except (KeyError, TypeError) as error:
            log.warning("checkpoint %s: has no position of the run (%r); trying the one before", path, error)
            return None
    return content

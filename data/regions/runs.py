"""Runs that write into one folder of region files: shards, the lock of each run, the record of settings and failures.

Files beside the folder: `<out>.info.json` (settings and failures), `<out>.lock` (guard, held for moments), and
`<out>.<i>of<n>.lock` (held by shard i of n while it runs; an unsharded run is shard 1 of 1).
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError, DataError
from common.files.atomic import atomic_write
from common.files.locks import close_lock, lock_holder, release_lock, take_lock, this_process
from common.regions.box_sources import ImageEntry
from common.regions.json_store import JsonRegions


@dataclass(frozen=True)
class Shard:
    """Part `index` (1 to `count`) of the images."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parses "i/n". Raises ConfigError unless 1 <= i <= n."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"--shard: expected i/n with 1 <= i <= n, got {text!r}")
        return cls(int(match[1]), int(match[2]))

    def select(self, entries: Sequence[ImageEntry]) -> list[ImageEntry]:
        """Returns the entries of this shard: index % count == self.index - 1 in the order of the names."""
        if self.count == 1:
            return list(entries)
        return sorted(entries, key=lambda entry: entry.name)[self.index - 1 :: self.count]

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@contextmanager
def run_in(
    out: str, shard: Shard, entries: Sequence[ImageEntry], identity: Mapping[str, Any]
) -> Iterator[list[ImageEntry]]:
    """Holds the lock of `shard` on the folder `out`. Yields the entries of the shard.

    entries: all images, of all shards. identity: settings that all runs into the folder share. Removes the temporary
    files that a killed run left. Raises ConfigError if another run has these images in work, or if the folder has
    features of other settings.
    """
    base = out.rstrip("/")
    mine = shard.select(entries)
    images = hashlib.sha256("\n".join(sorted(entry.name for entry in entries)).encode()).hexdigest()[:16]
    path = Path(f"{base}.{shard.index}of{shard.count}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _guard(base):
        _refuse_others(base, shard, images)
        lock = take_lock(path)
        if lock is None:
            raise ConfigError(f"{out}: another run has these images in work: {lock_holder(path)}")
        try:
            _remove_leftovers(out, {entry.name for entry in mine} if shard.count > 1 else None)
            _check_identity(base, identity)
        except BaseException:
            release_lock(lock, path)
            raise
        lock.write(f"{this_process()}\n{images}\n")
        lock.flush()
    try:
        yield mine
    finally:
        with _guard(base):
            release_lock(lock, path)


def record_failures(out: str, entries: Sequence[ImageEntry], failed: Mapping[str, str]) -> None:
    """Writes the failures of one run into `<out>.info.json`. Those of images outside `entries` stay."""
    base = out.rstrip("/")
    with _guard(base):
        info = _read_info(base)
        seen = {entry.name for entry in entries}
        others = {name: error for name, error in info.get("failed", {}).items() if name not in seen}
        _write_info(base, {"settings": info["settings"], "failed": {**others, **failed}})


def _check_identity(base: str, identity: Mapping[str, Any]) -> None:
    """Writes the settings into the info file of a new folder. Raises ConfigError if the folder has others."""
    if os.path.exists(f"{base}.info.json"):
        before = _read_info(base)["settings"]
        if before != identity:
            keys = [*identity, *(key for key in before if key not in identity)]
            changed = {k: (before.get(k), identity.get(k)) for k in keys if before.get(k) != identity.get(k)}
            raise ConfigError(f"{base} was made with other settings (was, now): {changed}; choose another --out")
        return
    if os.path.isdir(base) and JsonRegions(base).names():
        raise ConfigError(
            f"{base} has region files but no {Path(base).name}.info.json: not made here; choose another --out"
        )
    _write_info(base, {"settings": identity})


def _read_info(base: str) -> dict[str, Any]:
    path = f"{base}.info.json"
    try:
        info = json.loads(Path(path).read_text())
        if not isinstance(info["settings"], dict):
            raise TypeError("settings is no object")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: expected a JSON object with the key settings: {error!r}") from error
    return dict(info)


def _write_info(base: str, info: Mapping[str, Any]) -> None:
    with atomic_write(Path(f"{base}.info.json")) as f:
        f.write(json.dumps(info, indent=1).encode())


def _remove_leftovers(out: str, names: set[str] | None) -> None:
    """Removes temporary files of `save_regions`. names: only those of these images; other shards may be writing."""
    info = Path(f"{out.rstrip('/')}.info.json")
    for leftover in info.parent.glob(f".{glob.escape(info.name)}.*.tmp"):  # written under the guard only
        leftover.unlink()
    if not os.path.isdir(out):
        return
    for file in os.listdir(out):
        match = re.fullmatch(r"\.(.+)\.json\.[^.]+\.tmp", file)
        if match and (names is None or match[1] in names):
            os.unlink(os.path.join(out, file))


# Locks


@contextmanager
def _guard(base: str) -> Iterator[None]:
    """Lets one process at a time start, end or record a run."""
    Path(base).parent.mkdir(parents=True, exist_ok=True)
    lock = take_lock(Path(f"{base}.lock"), wait=True)
    assert lock is not None, "waits"
    try:
        yield
    finally:
        close_lock(lock)


def _refuse_others(base: str, shard: Shard, images: str) -> None:
    """Raises ConfigError if a run of another number of shards, or of another list of images, holds its lock."""
    folder, prefix = Path(base).parent, Path(base).name
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(re.escape(prefix) + r"\.(\d+)of(\d+)\.lock", path.name)
        if not match or (int(match[1]), int(match[2])) == (shard.index, shard.count):
            continue
        text = path.read_text()
        lock = take_lock(path)
        if lock is not None:  # left by a run that was killed
            release_lock(lock, path)
        elif int(match[2]) != shard.count:
            raise ConfigError(
                f"{base}: shard {shard} cannot start beside shard {match[1]}/{match[2]}: {lock_holder(path)}"
            )
        elif text.splitlines()[1:] != [images]:
            raise ConfigError(f"{base}: shard {match[1]}/{match[2]} has another list of images: {lock_holder(path)}")

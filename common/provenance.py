"""What made a checkpoint: versions, the commit of this code, the command and the machine."""

from __future__ import annotations

import platform
import shlex
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGE = "vl-bert"
ROOT = Path(__file__).resolve().parents[1]


def made_with(device: str, seed: int) -> dict[str, Any]:
    """Plain values for a checkpoint: python, torch, package, git_commit, git_dirty, command, host, device, seed."""
    return {**versions(), **git_state(ROOT), "command": shlex.join(sys.argv), "host": socket.gethostname()} | {
        "device": device,
        "seed": seed,
    }


def versions() -> dict[str, str | None]:
    """Versions of Python, torch and this package; None for a package that is not installed."""
    try:
        own: str | None = version(PACKAGE)
    except PackageNotFoundError:
        own = None
    return {"python": platform.python_version(), "torch": str(torch.__version__), PACKAGE: own}


def git_state(root: Path) -> dict[str, Any]:
    """git_commit and git_dirty of the checkout `root`, where tracked files count; both None outside a checkout."""
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    changes = _git(root, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}


def _git(root: Path, *command: str) -> str | None:
    try:
        run = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() if run.returncode == 0 else None

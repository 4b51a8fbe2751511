"""The arrows of docs/design.md: which folder may import which."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("pretrain", "vcr", "vqa", "refcoco")
OURS = {"common", "viz", "data", "scripts", "tests", "benchmarks", *TASKS}
FILES = sorted(p for folder in OURS for p in (ROOT / folder).rglob("*.py") if "-world" not in str(p))


def imported(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, at the top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def forbidden(place: str, name: str) -> bool:
    """Whether a module at `place` (dotted) may not import `name`."""
    top, target = place.split(".")[0], name.split(".")[0]
    if target not in OURS:
        of_torch = name.startswith("torch.distributed") and place not in ("common.distributed", "common.launch")
        return of_torch and top in OURS - {"tests"}
    if top in ("tests", "scripts", "benchmarks"):
        return target in ("tests", "scripts") and target != top and top != "tests"
    if target in ("tests", "scripts", "benchmarks"):
        return True
    if place.startswith("common.nn."):
        return not name.startswith(("common.nn", "common.boxes"))
    if place.startswith("common.data."):
        return not name.startswith(("common.data", "common.boxes", "common.files"))
    if place in ("common.config", "common.config_keys", "common.boxes", "common.files", "common.distributed"):
        return not name.startswith(("common.config", "common.config_keys"))
    allowed = {"common"} if top == "common" else {"common", top}
    return target not in allowed


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows(path: Path):
    place = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    wrong = sorted(name for name in imported(path) if forbidden(place, name))
    assert not wrong, f"{place} must not import {wrong}"


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("vqa.dataset", "vcr.text"),
        ("common.cli", "vqa.task"),
        ("common.nn.bert", "common.config"),
        ("common.data.text", "common.trainer"),
        ("common.trainer", "torch.distributed"),
        ("common.run", "scripts.demo_vqa"),
    ],
)
def test_the_rule_itself_finds_wrong_arrows(place: str, name: str):
    assert forbidden(place, name)

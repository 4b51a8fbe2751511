"""The rules of docs/design.md: which package may import which, and no circle anywhere, not even for types."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.paths import ROOT

TASKS = ("pretrain", "vcr", "vqa", "refcoco")
OURS = {"common", "viz", "data", "scripts", "tests", "benchmarks", *TASKS}
FILES = sorted(p for folder in OURS for p in (ROOT / folder).rglob("*.py") if "-world" not in str(p))
PACKAGES = [p for p in FILES if p.name == "__init__.py" and "tests" not in p.parts and p.parent.parent != ROOT]

# Packages and modules of common, each with what it may import of common beside itself, from the bottom to the top.
BASE = {
    "common.errors",
    "common.failures",
    "common.boxes",
    "common.places",
    "common.distributed",
    "common.provenance",
}
ON_DISK = {"common.config", "common.files", *BASE}
DATA = {"common.data", "common.regions", *ON_DISK}
MODEL = {"common.nn", "common.precision", "common.weights", *ON_DISK}
RUN = {"common.log", "common.loggers", "common.metrics", "common.task", *DATA, *MODEL}
RULES: dict[str, set[str]] = {
    "common.errors": set(),
    "common.boxes": set(),
    "common.failures": set(),
    "common.places": set(),
    "common.watchdog": {"common.failures"},
    "common.distributed": {"common.errors", "common.watchdog"},
    "common.provenance": set(),
    "common.loggers": {"common.errors"},
    "common.metrics": {"common.distributed"},
    "common.files": {"common.errors"},
    "common.config": {"common.errors", "common.files"},
    "common.log": {"common.distributed", "common.errors", "common.files", "common.loggers"},
    "common.nn": {"common.boxes", "common.places"},
    "common.needs": {"common.config"},
    "common.precision": {"common.config", "common.errors"},
    "common.regions": {"common.errors", "common.boxes", "common.files"},
    "common.data": DATA - {"common.data"},
    "common.task": {"common.metrics", *DATA},
    "common.weights": {"common.task", *MODEL} - {"common.weights"},
    "common.detect": {"common.nn", "common.regions", "common.weights", *ON_DISK},
    "common.train": RUN,
    "common.cli": {"common.train", *RUN},
    "common.predict": {"common.cli", "common.detect", *RUN},
    "common.inspect": {"common.cli", "common.needs", "common.train", *RUN},
    "common.doctor": {"common.inspect"},
    "common.model_report": {"common.inspect"},
    "common.export": {"common.cli", "common.predict"},
    "common.inference": {"common.errors", "common.predict"},
}


def imported(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, at the top, inside functions or for types."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def forbidden(place: str, name: str) -> bool:
    """Whether a module at `place` (dotted) may not import `name`."""
    top, target = place.split(".")[0], name.split(".")[0]
    if target not in OURS:
        of_torch = name.startswith("torch.distributed") and place not in ("common.distributed", "common.train.launch")
        return of_torch and top in OURS - {"tests"}
    if top in ("tests", "scripts", "benchmarks"):
        return target in ("tests", "scripts") and target != top and top != "tests"
    if target in ("tests", "scripts", "benchmarks"):
        return True
    if top != "common":
        return target not in ("common", top)
    package = ".".join(place.split(".")[:2])
    return not within(name, {package, *RULES[package]})


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows(path: Path):
    place = module_name(path)
    if place == "common":
        return
    wrong = sorted(name for name in imported(path) if forbidden(place, name))
    assert not wrong, f"{place} must not import {wrong}"


def test_each_package_imports_only_what_stands_below_it():
    order = list(RULES)
    assert all(order.index(target) < order.index(place) for place, targets in RULES.items() for target in targets)


def test_no_modules_import_each_other_in_a_circle():
    files = {module_name(path): path for path in FILES if path.name != "__init__.py" and "tests" not in path.parts}
    arrows = {
        place: {name if name in files else name.rpartition(".")[0] for name in imported(path)} & files.keys() - {place}
        for place, path in files.items()
    }
    # What imports nothing, and what nothing imports, is in no circle; what is left in the end is.
    while ends := arrows.keys() - {p for p in arrows if arrows[p] and any(p in targets for targets in arrows.values())}:
        arrows = {place: targets - ends for place, targets in arrows.items() if place not in ends}
    assert not arrows


@pytest.mark.parametrize("path", PACKAGES, ids=lambda p: str(p.parent.relative_to(ROOT)))
def test_each_package_states_its_rule(path: Path):
    rule = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert rule and len(rule.splitlines()) == 1


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("vqa.dataset", "vcr.text"),
        ("common.cli", "vqa.task"),
        ("common.nn.bert", "common.config"),
        ("common.data.text", "common.train.trainer"),
        ("common.files.images", "common.data.sample"),
        ("common.train.trainer", "torch.distributed"),
        ("common.train.run", "scripts.demo_vqa"),
    ],
)
def test_the_rule_itself_finds_wrong_arrows(place: str, name: str):
    assert forbidden(place, name)

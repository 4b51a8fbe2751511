"""requirements.txt and the extras of pyproject.toml list what the program imports; packages of data/ are shipped."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import Distribution, find_packages

from tests.test_imports import TASKS, imported

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("common", "viz", "data", "scripts", *TASKS)
# Import names that differ from the name on the package index, or that come with another package.
DISTRIBUTIONS = {"yaml": "pyyaml", "PIL": "pillow", "werkzeug": "flask", "mlflow": "mlflow-skinny"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINES = (ROOT / "requirements.txt").read_text().splitlines()


def name_of(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match, requirement
    return match[0].lower()


def third_party(folders: tuple[str, ...]) -> set[str]:
    """The distributions that the Python files of some folders import."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    modules = {name.split(".")[0] for path in files for name in imported(path)}
    modules -= {*sys.stdlib_module_names, *SHIPPED, "tests", "benchmarks"}
    return {DISTRIBUTIONS.get(name, name).lower() for name in modules}


REQUIRED = {name_of(line): i for i, line in enumerate(LINES) if line and not line.startswith("#")}
EXTRAS = {name_of(line) for lines in PROJECT["project"]["optional-dependencies"].values() for line in lines}


def test_what_the_program_imports_is_required_or_an_extra():
    assert third_party(SHIPPED) - REQUIRED.keys() - EXTRAS == set()


def test_what_is_required_is_imported_or_has_a_comment_that_says_why():
    """The comment stands above the line."""
    unused = REQUIRED.keys() - third_party(SHIPPED)
    assert [name for name in sorted(unused) if not LINES[REQUIRED[name] - 1].startswith("# Not imported")] == []
    assert third_party(SHIPPED) >= EXTRAS


def test_packages_are_neither_ignored_nor_left_out():
    """.gitignore has /data/*/ for the folders of users: each package under data/ needs an exception there."""
    folders = sorted({path.parent for folder in SHIPPED for path in (ROOT / folder).rglob("*.py")})
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    settings = PROJECT["tool"]["setuptools"]["packages"]["find"]
    assert packages == set(find_packages(str(ROOT), include=settings["include"]))
    paths = [str((ROOT / package.replace(".", "/") / "new.py").relative_to(ROOT)) for package in sorted(packages)]
    ignored = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True)
    if ignored.returncode == 128:
        pytest.skip(f"no git repository: {ignored.stderr.strip()}")
    assert ignored.stdout == ""


def test_data_files_of_packages_are_shipped():
    """viz/static and the names of classes: setuptools leaves out what no pattern of package-data names."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    shipped = {
        file for name, globs in patterns.items() for g in globs for file in (ROOT / name.replace(".", "/")).glob(g)
    }
    needed = {f for folder in ("viz/static", "common/regions/visual_genome") for f in (ROOT / folder).iterdir()}
    assert needed and needed <= shipped


def test_a_built_package_has_its_marker_of_types(tmp_path, monkeypatch):
    """Type checkers read the annotations of an installed package only beside py.typed."""
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files(["pyproject.toml"])
    distribution.include_package_data = False  # otherwise the list of git's files is written into the tree
    build = distribution.get_command_obj("build_py")
    build.build_lib = str(tmp_path)
    build.ensure_finalized()
    files = {Path(file).relative_to(tmp_path) for file in build.get_outputs()}
    assert {file.parent.name for file in files if file.name == "py.typed"} == set(SHIPPED)

"""Citations of docs/original.md name rules that exist, and documents name files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.paths import ROOT

RULES_FILE = ROOT / "docs" / "original.md"
FOLDERS = ("benchmarks", "cfgs", "common", "data", "docs", "model", "pretrain", "refcoco", "scripts", "tests")
FOLDERS += ("vcr", "viz", "vqa")
RULE = re.compile(r"^\* \*\*(\d+\.\d+)\*\* ", re.MULTILINE)
# "original 4.7", "original 4.1 to 4.7", "original 3.1, 3.26 and 3.27", also broken over lines of a comment
GAP = r"[\s#]+"
CITATION = re.compile(rf"\boriginal{GAP}(\d+\.\d+(?:(?:,|{GAP}to|{GAP}and){GAP}\d+\.\d+)*)", re.IGNORECASE)
# Forms of another document: "spec 04 §3", "P-21", "D-7", and a section sign that is not of the paper.
FOREIGN = re.compile(r"\b[Ss]pecs?[ ]\d|\b[DPQV]-\d{1,2}\b|(?<!paper )§")


def files() -> list[Path]:
    inside = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.is_file()]
    kinds = {".py", ".md", ".yaml", ".sh"}
    found = [path for path in [*inside, *sorted(ROOT.glob("*"))] if path.suffix in kinds]
    return [path for path in found if "-world" not in str(path) and path != Path(__file__)]


FILES = files()
DOCUMENTS = [path for path in FILES if path.suffix == ".md"]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
# "common/nn/cpu" or "vqa/test.py" in code quotes; patterns and made-up names have other characters
CODE_FOLDERS = sorted(set(FOLDERS) - {"data", "model"})
OWN_PATH = re.compile(rf"`((?:{'|'.join(CODE_FOLDERS)})/[\w/]*\w(?:\.(?:py|md|yaml|sh|js))?)/?`")


def rules() -> list[str]:
    return RULE.findall(RULES_FILE.read_text(encoding="utf-8"))


def cited(text: str) -> list[str]:
    """Numbers of rules that `text` cites."""
    return [number for match in CITATION.finditer(text) for number in re.findall(r"\d+\.\d+", match[1])]


def test_rules_count_from_one_in_each_area():
    areas: dict[int, list[int]] = {}
    for area, number in (map(int, rule.split(".")) for rule in rules()):
        areas.setdefault(area, []).append(number)
    assert list(areas) == list(range(1, 13))
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in areas.values())


def test_most_areas_are_cited():
    product = [path for path in FILES if {"tests", "docs"}.isdisjoint(path.relative_to(ROOT).parts)]
    numbers = [number for path in product for number in cited(path.read_text(encoding="utf-8"))]
    assert len(numbers) > 80 and len({number.split(".")[0] for number in numbers}) >= 9


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_citations_resolve(path: Path):
    text = path.read_text(encoding="utf-8")
    assert not set(cited(text)) - set(rules())
    assert not [match[0] for match in FOREIGN.finditer(text)]


def test_citations_are_found_in_every_form():
    text = "original 4.7; Original 3.1, 3.26\n    # and 3.27 (seeds), original\n    2.4 to 2.15. The original 3 x 3"
    assert cited(text) == ["4.7", "3.1", "3.26", "3.27", "2.4", "2.15"]
    assert [m[0] for m in FOREIGN.finditer("spec 04, P-21, D-7, (§2), paper §3.2")] == ["spec 0", "P-21", "D-7", "§"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_document_names_exist(path: Path):
    text = path.read_text(encoding="utf-8")
    named = [path.parent / link for link in LINK.findall(text)] + [ROOT / name for name in OWN_PATH.findall(text)]
    assert not [str(file) for file in named if not file.exists()]

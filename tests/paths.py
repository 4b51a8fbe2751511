"""Folders that tests read."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # the repository
KIT = ROOT.parent / "shared" / "data"  # real data beside the checkout; tests take it from the fixture `kit`
CASES = ROOT.parent / "shared" / "cases"  # small files that are hard to read

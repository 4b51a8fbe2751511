"""What a predictor of a task asks for, told once: for its keywords, its command line and its form on a page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """One thing to ask. kind: "text", "texts" (several), "number", "numbers" or "json" (any JSON value)."""

    name: str
    help: str
    kind: str = "text"
    required: bool = True

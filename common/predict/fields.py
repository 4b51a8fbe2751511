"""The inputs of a predictor beside the image and its boxes, declared once for keywords, command line and web form."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """One input. kind: "text", "texts" (several), "number", "numbers" or "json" (any JSON value)."""

    name: str
    help: str
    kind: str = "text"
    required: bool = True

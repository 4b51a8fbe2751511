"""Records of Conceptual Captions: one JSON object a line, with image, caption and frcnn. Imports no torch."""

from __future__ import annotations

import json
from typing import Any

from common.errors import DataError

FIELDS = ("image", "caption", "frcnn")


def read_record(line: str | bytes, where: str) -> dict[str, Any]:
    """Returns the record of a line. Raises DataError with `where`, the file and the line number, for a broken one."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object with image, caption and frcnn")
    missing = [key for key in FIELDS if key not in record]
    if missing:
        raise DataError(f"{where}: no {' and no '.join(missing)}")
    if not isinstance(record["image"], str) or not isinstance(record["frcnn"], str):
        raise DataError(
            f"{where}: image and frcnn must be texts, got {record['image']!r:.60} and {record['frcnn']!r:.60}"
        )
    caption = record["caption"]
    words = [caption] if isinstance(caption, str) else caption
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise DataError(f"{where}: caption must be a text or a list of words, got {caption!r:.80}")
    return record

"""Scores of the choices by annotation id, kept in files and measured against labels (original 8.20)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import DataError
from common.files.atomic import save_array, write_text
from common.files.json_files import read_json
from common.task import Record
from vcr.annotations import NUM_CHOICES, Annotations
from vcr.outputs import logits_in_order


@dataclass(frozen=True)
class Predictions:
    """ids: annot_id of each row. logits: float64 [n, 4]."""

    ids: list[str]
    logits: np.ndarray

    @classmethod
    def of(cls, records: Sequence[Record], ids: Sequence[str]) -> Predictions:
        """Of records, in the order of `ids`. Raises DataError when they are not exactly these."""
        return cls(list(ids), logits_in_order(records, ids).double().numpy())

    @staticmethod
    def exist(path: Path) -> bool:
        """Whether both files are there."""
        return path.is_file() and path.with_suffix(".json").is_file()

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """From the .npy at `path` and the ids beside it. Raises DataError when they do not belong together."""
        try:
            logits = np.load(path, allow_pickle=False)
            ids = read_json(path.with_suffix(".json"))
        except (ValueError, EOFError, OSError) as error:
            raise DataError(f"{path} or the .json beside it cannot be read: {error}") from error
        if (
            not isinstance(ids, list)
            or not all(isinstance(i, str) for i in ids)
            or logits.shape != (len(ids), NUM_CHOICES)
        ):
            raise DataError(f"{path}: scores of shape {logits.shape}, the .json beside it has {len(ids)} ids")
        return cls(ids, logits)

    def save(self, path: Path) -> None:
        save_array(path, self.logits)
        write_text(path.with_suffix(".json"), json.dumps(self.ids))

    def hits(self, labels: Mapping[str, int | None]) -> np.ndarray:
        """bool [n], in the order of `labels`: whether the best choice is the right one.

        labels: right choice by annot_id. Raises DataError when the ids are not exactly those of the labels.
        """
        rows = {annot_id: row for row, annot_id in enumerate(self.ids)}
        wrong = sorted(rows.keys() ^ labels.keys())
        if wrong or len(rows) < len(self.ids):
            raise DataError(
                f"{len(self.ids)} predictions for {len(labels)} annotated questions; ids that only one of them has: "
                f"{', '.join(wrong[:5]) or 'none, but ids are there twice'}"
            )
        best = self.logits.argmax(1)
        return np.array([best[rows[annot_id]] == label for annot_id, label in labels.items()])


def format_scores(annotations: Annotations, answers: Predictions | None, rationales: Predictions | None) -> str:
    """Lines "name <tab> percent" of what there are predictions for: Q->A, QA->R and, of both, Q->AR.

    Raises DataError when the predictions are not exactly those of the annotated questions.
    """
    hits = {}
    if answers is not None:
        hits["Q->A"] = answers.hits(dict(zip(annotations.ids, annotations.answer_labels, strict=True)))
    if rationales is not None:
        hits["QA->R"] = rationales.hits(dict(zip(annotations.ids, annotations.rationale_labels, strict=True)))
    if len(hits) == 2:
        hits["Q->AR"] = hits["Q->A"] & hits["QA->R"]
    return "\n".join(f"{name}\t{100 * hit.mean():.1f}" for name, hit in hits.items())

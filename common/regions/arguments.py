"""Command-line options about regions. Imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

DTYPES = ("float32", "float16")  # of the features in a packed store
SOURCES = (
    "coco:INSTANCES.json  vcr:ANNOTATIONS.jsonl  json:FILE.json  regions:STORE  vg:DETECTOR  detector:WEIGHTS.pth  "
    "grid:ROWSxCOLUMNS  module:NAME (its function find_boxes)"
)


@dataclass(frozen=True)
class DetectorLimits:
    """Which boxes of a detector are kept: those with a confidence of at least `threshold`, but no fewer than
    min_boxes and no more than max_boxes."""

    min_boxes: int = 10
    max_boxes: int = 100
    threshold: float = 0.5


DEFAULT_LIMITS = DetectorLimits()


def add_detector_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `detector_limits` reads."""
    default = DEFAULT_LIMITS
    parser.add_argument("--min-boxes", type=int, default=default.min_boxes, help="of a detector")
    parser.add_argument("--max-boxes", type=int, default=default.max_boxes, help="of a detector")
    parser.add_argument(
        "--threshold", type=float, default=default.threshold, help="least confidence of a detector's box"
    )


def detector_limits(args: argparse.Namespace) -> DetectorLimits:
    return DetectorLimits(args.min_boxes, args.max_boxes, args.threshold)

"""What command lines say about regions. Imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse

DTYPES = ("float32", "float16")  # of the features in a packed store
SOURCES = (
    "coco:INSTANCES.json  vcr:ANNOTATIONS.jsonl  json:FILE.json  regions:STORE  detector:WEIGHTS.pth  "
    "grid:ROWSxCOLUMNS  module:NAME (its function find_boxes)"
)


def add_detector_arguments(parser: argparse.ArgumentParser) -> None:
    """The numbers of `common.regions.box_sources.build_source`."""
    parser.add_argument("--min-boxes", type=int, default=10, help="of a detector")
    parser.add_argument("--max-boxes", type=int, default=100, help="of a detector")
    parser.add_argument("--threshold", type=float, default=0.5, help="least confidence of a detector's box")

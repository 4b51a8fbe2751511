"""Check a result file for the VCR leaderboard: python vcr/check_submission.py RESULT.csv --annot data/vcr/test.jsonl"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.cli import guarded

SHOWN = 20


def main() -> None:
    parser = argparse.ArgumentParser(description="Check the columns, annotations and numbers of a VCR result file.")
    parser.add_argument("result", type=Path, metavar="RESULT.csv", help="a file of vcr/test.py: Q2A, QA2R or Q2AR")
    parser.add_argument("--annot", required=True, type=Path, metavar="FILE", help="the test annotations")
    args = parser.parse_args()
    sys.exit(guarded(_run, args.result, args.annot))


def _run(result: Path, annot: Path) -> None:
    """Print one line for a good file. Raises DataError for a bad one, after printing its problems."""
    from common.errors import DataError
    from vcr.annotations import Annotations
    from vcr.result_table import find_problems, read_table

    table = read_table(result)
    ids = Annotations(annot, with_labels=False).ids
    problems = find_problems(table, ids)
    if not problems:
        print(f"{result}: {table.kind}, {len(table.rows)} annotations, every one of {annot} once, all numbers good")
        return
    for problem in problems[:SHOWN]:
        print(f"{result}: {problem}")
    if len(problems) > SHOWN:
        print(f"{result}: and {len(problems) - SHOWN} more")
    raise DataError(f"{result}: {len(problems)} problems with {annot}")


if __name__ == "__main__":
    main()

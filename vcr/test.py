"""Write the probabilities of the test questions for the VCR leaderboard, of one net or of both.

python vcr/test.py --a-cfg A.yaml --a-ckpt A.model --r-cfg R.yaml --r-ckpt R.model
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common.cli import guarded_on
from vcr.two_nets import (
    Half,
    add_arguments,
    load_halves,
    start_group,
)

BATCH_KEY = "TEST.BATCH_IMAGES"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the VCR results of one or both halves of the task.")
    add_arguments(parser, BATCH_KEY)
    parser.add_argument("--test-file", metavar="FILE", help="overrides DATASET.TEST_ANNOTATION_FILE")
    parser.add_argument("--result-path", default="./test_result", metavar="DIR", help="folder of the results")
    parser.add_argument("--result-name", metavar="NAME", help="stem of the result files (default: MODEL_PREFIX)")
    args = parser.parse_args()
    if not args.a_cfg and not args.r_cfg:
        parser.error("give --a-cfg, --r-cfg or both")
    sys.exit(guarded_on(args.gpus, _run, args))


def _run(args: argparse.Namespace) -> None:
    from common import distributed
    from vcr.result_table import Q2AR, merge_tables

    overrides = [f"DATASET.TEST_ANNOTATION_FILE={args.test_file}"] if args.test_file else []
    halves = load_halves(args, BATCH_KEY, overrides)
    start_group(halves)
    paths = [_write(half, args) for half in halves]
    if not distributed.is_main():
        return
    if len(paths) > 1:
        stem = args.result_name or halves[0].cfg.MODEL_PREFIX
        merged = Path(args.result_path) / f"{stem}_test_result_{Q2AR}.csv"
        merge_tables(paths[0], paths[1], merged)
        paths.append(merged)
    print(*paths, sep="\n")


def _write(half: Half, args: argparse.Namespace) -> Path:
    """The result file of a half; with --use-cache the one that is there."""
    from common import distributed
    from common.task import load_task
    from common.train.run import run_test

    task, folder = load_task("vcr"), Path(args.result_path)
    path = folder / task.result_name(half.cfg, args.result_name or task.result_stem(half.cfg, half.cfg_path.stem))
    # The first process decides: it may have written the file before another one looks.
    if distributed.broadcast_object(args.use_cache and path.is_file()):
        return path
    return run_test(task, half.cfg, half.cfg_path, half.ckpt, folder, args.result_name).path


if __name__ == "__main__":
    main()

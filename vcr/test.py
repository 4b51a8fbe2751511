"""Write the probabilities of the test questions for the VCR leaderboard, of one net or of both.

python vcr/test.py --a-cfg A.yaml --a-ckpt A.model --r-cfg R.yaml --r-ckpt R.model
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from common.cli import guarded_on
from vcr.two_nets import Half, NetFlags, add_arguments, load_halves, net_flags, start_group

BATCH_KEY = "TEST.BATCH_IMAGES"


@dataclass(frozen=True)
class Flags:
    """The command line. result_name: stem of the result files, None for MODEL_PREFIX."""

    nets: tuple[NetFlags, NetFlags]
    result_path: Path
    result_name: str | None
    use_cache: bool


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the VCR results of one or both halves of the task.")
    add_arguments(parser, BATCH_KEY)
    parser.add_argument("--test-file", metavar="FILE", help="overrides DATASET.TEST_ANNOTATION_FILE")
    parser.add_argument("--result-path", default="./test_result", metavar="DIR", help="folder of the results")
    parser.add_argument("--result-name", metavar="NAME", help="stem of the result files (default: MODEL_PREFIX)")
    args = parser.parse_args()
    if not args.a_cfg and not args.r_cfg:
        parser.error("give --a-cfg, --r-cfg or both")
    flags = Flags(
        nets=net_flags(args, BATCH_KEY, {"DATASET.TEST_ANNOTATION_FILE": args.test_file or None}),
        result_path=Path(args.result_path),
        result_name=args.result_name,
        use_cache=args.use_cache,
    )
    sys.exit(guarded_on(args.gpus, _run, flags))


def _run(flags: Flags) -> None:
    from common import distributed
    from vcr.result_table import Q2AR, merge_tables

    halves = load_halves(flags.nets)
    start_group(halves)
    paths = [_write(half, flags) for half in halves]
    if not distributed.is_main():
        return
    if len(paths) > 1:
        stem = flags.result_name or halves[0].cfg.MODEL_PREFIX
        merged = flags.result_path / f"{stem}_test_result_{Q2AR}.csv"
        merge_tables(paths[0], paths[1], merged)
        paths.append(merged)
    print(*paths, sep="\n")


def _write(half: Half, flags: Flags) -> Path:
    """The result file of a net. With --use-cache a file that is there is not written again."""
    from common import distributed
    from common.task import load_task
    from common.train.run import run_test

    task, folder, name = load_task("vcr"), flags.result_path, flags.result_name
    path = folder / task.result_name(half.cfg, name or task.result_stem(half.cfg, half.cfg_path.stem))
    # The first process decides: it may have written the file before another one looks.
    if distributed.broadcast_object(flags.use_cache and path.is_file()):
        return path
    return run_test(task, half.cfg, half.cfg_path, half.ckpt, folder, name).path


if __name__ == "__main__":
    main()

"""Comparison with reference numbers: `python -m tests.golden DIR [--data KIT] [--only PATTERN] [--device cuda]`."""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

import torch

from tests.golden.core import Case, Report, Skip, find_cases

# First letter of the group -> module of this package with run(case, report).
ADAPTERS = {
    "A": "encoder",
    "B": "encoder",
    "C": "regions",
    "D": "tasks",
    "E": "optim",
    "F": "training",
    "G": "utils",
    "H": "manifests",
    "I": "tasks",
    "J": "checkpoints",
    "K": "datasets",
    "L": "detector",
}
ON_DEVICES = "ABCD"  # groups that --device moves
MAX_LINES = 5  # failures printed of one case


def main(argv: list[str] | None = None) -> int:
    """Run all cases, print a line each and the totals.

    Returns the exit status: 0 where at least one case passed and none failed. A skipped case is neither.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("golden", type=Path, metavar="DIR", help="folder of the reference numbers")
    parser.add_argument("--data", type=Path, metavar="KIT", help="the data kit; default: the folder data beside DIR")
    parser.add_argument("--vocab", type=Path, metavar="DIR", help="folder with bert-base-uncased/; default: KIT/vocab")
    parser.add_argument(
        "--only", default="", metavar="PATTERN", help="part of a case's name, or a pattern: 'D_*/vqa_*'"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda; cuda runs the cases of modules, groups A to D")
    parser.add_argument("--traceback", action="store_true", help="print the traceback of a case that raised")
    args = parser.parse_args(argv)
    golden = args.golden.resolve()
    data = (args.data or golden.parent / "data").resolve()
    vocab = (args.vocab or data / "vocab").resolve()

    logging.getLogger("common").setLevel(logging.ERROR)  # notices about shipped configs are no results
    outcomes: Counter[str] = Counter()
    for path in find_cases(golden, args.only):
        with tempfile.TemporaryDirectory(prefix="golden-") as tmp:
            case = Case(path, golden, data, vocab, Path(tmp), torch.device(args.device))
            outcomes[run_case(case, args.traceback)] += 1
        gc.collect()  # models with cycles go before the next one is built
    if not outcomes:
        print(f"no cases in {golden}" + (f" match {args.only!r}" if args.only else ""), file=sys.stderr)
    print(f"{outcomes['PASS']} passed, {outcomes['FAIL']} failed, {outcomes['SKIP']} skipped")
    return 0 if outcomes["PASS"] and not outcomes["FAIL"] else 1


def run_case(case: Case, show_traceback: bool = False) -> str:
    """Run one case and print its lines. Returns PASS, FAIL or SKIP."""
    report = Report()
    try:
        importlib.import_module(f"tests.golden.{adapter_of(case)}").run(case, report)
    except Skip as skip:
        print(f"SKIP {case.name}  {skip}", flush=True)
        return "SKIP"
    except Exception as error:  # the result of this case, not of the runner
        report.fail("raised", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        if show_traceback:
            traceback.print_exc()
    if not report.comparisons and not report.failures:
        report.fail("nothing compared", "the adapter made no comparison")
    outcome = "FAIL" if report.failures else "PASS"
    worst = f"worst error {report.worst:.2g} of tolerance ({report.worst_name})" if report.worst_name else "exact"
    print(f"{outcome} {case.name}  {worst if report.comparisons else 'not compared'}; {report.comparisons} comparisons")
    more = len(report.failures) - MAX_LINES
    for line in report.failures[:MAX_LINES] + ([f"and {more} more"] if more > 0 else []) + report.notes:
        print(f"     {line}")
    sys.stdout.flush()
    return outcome


def adapter_of(case: Case) -> str:
    """Name of the module that runs a case. Raises Skip for a group without one."""
    letter = case.group[:1]
    if case.device.type != "cpu" and letter not in ON_DEVICES:
        raise Skip(f"group {case.group} computes on the CPU")
    if letter not in ADAPTERS:
        raise Skip(f"no adapter yet: group {case.group} is unknown")
    if case.group.startswith("G") and case.json.get("class") == "metrics":
        return "metrics"
    return ADAPTERS[letter]


if __name__ == "__main__":
    sys.exit(main())

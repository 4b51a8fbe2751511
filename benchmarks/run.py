"""Benchmarks: python -m benchmarks.run [--suite vqa-base ...] [--json out.json]

Every figure of a workload comes from one run in which the candidates take turns; "x plain" is the ratio to the same
model computed plainly in float32 (benchmarks/plain.py). MFU: FLOPs of the step over seconds, as a part of what a
2048-cubed matrix product of that number format reaches here.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n")[0])
    parser.add_argument("--suite", nargs="+", metavar="NAME", help="what to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, help="of a batch, instead of the workload's")
    parser.add_argument("--images", type=int, default=1, help="of the suite detector")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--device", default=None)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    args = parser.parse_args(argv)

    import torch

    from benchmarks import detector, loading, packing, parts
    from benchmarks.measure import device_name, matmul_peak
    from benchmarks.steps import HEADER, SPLIT_HEADER, WORKLOADS, measure, rows, split_rows
    from common.files.atomic import write_text
    from common.inspect.model_report import table

    logging.disable(logging.WARNING)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    others: dict[str, tuple[list[str], Callable[[], list[list[str]]]]] = {
        "encoder": (
            ["part", "step", "precision", "seconds", "of the matrix product"],
            lambda: parts.measure_encoder(args.rounds, device, args.precision),
        ),
        "tower": (
            ["part", "step", "what", "seconds", "x torchvision"],
            lambda: parts.measure_tower(args.rounds, device, args.precision),
        ),
        "detector": (
            detector.HEADER,
            lambda: detector.measure_detector(args.rounds, device, args.precision, args.images),
        ),
        "loader": (["", "regions from", "samples/s", "x JSON"], lambda: loading.measure_loader(args.rounds)),
        "pixels": (["step", "how", "ms", "same values"], lambda: loading.measure_pixels(args.rounds)),
        "start": (["what", "seconds", "GiB"], loading.measure_start),
        "packing": (packing.HEADER, lambda: packing.measure_packing(args.rounds)),
    }
    unknown = set(args.suite or []) - {*WORKLOADS, *others}
    if unknown:
        parser.error(f"--suite {', '.join(sorted(unknown))}: there are {', '.join([*WORKLOADS, *others])}")
    peaks = {name: matmul_peak(dtype, device) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    print(f"{device_name(device)}, torch {torch.__version__}")
    print(
        "matrix product: " + ", ".join(f"{name} {peak / 1e9:.0f} GFLOP/s" for name, peak in peaks.items()), flush=True
    )
    found: dict[str, Any] = {"device": device_name(device), "torch": torch.__version__, "peaks": peaks, "suites": {}}
    lines: list[list[str]] = []
    for name in args.suite or [*WORKLOADS, *others]:
        if name in others:
            header, run = others[name]
            found["suites"][name] = {"header": header, "rows": run()}
            print(table(header, found["suites"][name]["rows"]), flush=True)
        else:
            found["suites"][name] = measure(name, args.rounds, device, args.precision, args.samples)
            lines += rows(name, found["suites"][name])
            print(table(HEADER, rows(name, found["suites"][name])))
            if found["suites"][name]["split"]:
                print(table(SPLIT_HEADER, split_rows(name, found["suites"][name])), flush=True)
        if args.json:
            write_text(args.json, json.dumps(found, indent=1) + "\n")
    if lines:
        print("\n" + table(HEADER, lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())

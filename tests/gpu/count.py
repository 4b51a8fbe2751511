"""Waits, kernels, FLOPs and bytes of a training step at full size, and the time of an H100 that they allow.

python -m tests.gpu.count [CASE ...] [--precision bf16] [--places]     CASE: "vqa base", ... ; default: all

No GPU is used. The step is that of the Trainer; its tensors have shapes and no values. The model of the time: 70 % of
the peak, 80 % of the bandwidth, at least 2 us a kernel on the device, 5 us a launch and 10 us a wait on the host.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.gpu import fake_gpu

PEAK = {"bf16": 989e12, "fp16": 989e12, "fp32": 67e12}  # FLOP/s of an H100 SXM; fp32 without TF32
BANDWIDTH = 3.35e12  # bytes/s
OF_PEAK, OF_BANDWIDTH = 0.7, 0.8
KERNEL, LAUNCH, WAIT = 2e-6, 5e-6, 10e-6  # seconds
LIMIT = 200_000  # elements; larger tensors have no values


@dataclass(frozen=True)
class FullSize:
    """A config and the sizes of its batch, as tests.gpu.steps takes them. samples None: those of the config."""

    task: str
    cfg: str
    sizes: dict[str, Any] = field(default_factory=dict)
    sets: tuple[str, ...] = ()


VQA = {"samples": 32, "words": 17, "boxes": 100}
CASES = {
    "vqa base": FullSize("vqa", "vqa/base_4x16G_fp32.yaml", VQA),
    "vqa large": FullSize("vqa", "vqa/large_4x16G_fp32.yaml", VQA),
    "pretrain base": FullSize("pretrain", "pretrain/base_prec_4x16G_fp32.yaml"),
    "vcr base": FullSize("vcr", "vcr/base_q2a_4x16G_fp32.yaml", {"samples": 4, "image": (600, 1000)}),
}


@dataclass
class Sums:
    """Kernels added up. device: seconds on the device by the model."""

    ops: int = 0
    kernels: int = 0
    flops: float = 0.0
    moved: int = 0
    device: float = 0.0

    def add(self, kernel: Any) -> None:
        name = "fp32" if kernel.dtype is None or kernel.dtype.itemsize >= 4 else "bf16"
        ideal = max(kernel.flops / PEAK[name] / OF_PEAK, kernel.moved / BANDWIDTH / OF_BANDWIDTH)
        self.ops += 1
        self.kernels += kernel.launches
        self.flops += kernel.flops
        self.moved += kernel.moved
        self.device += max(ideal, kernel.launches * KERNEL)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.count", description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of: {', '.join(CASES)} (default: all)")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp16", "fp32"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the config")
    parser.add_argument("--places", action="store_true", help="print operators and places, not only the phases")
    args = parser.parse_args(argv)
    if unknown := set(args.cases) - CASES.keys():
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join(CASES)}")
    if not fake_gpu.active():
        return fake_gpu.run_again("tests.gpu.count", list(sys.argv[1:] if argv is None else argv))
    logging.disable(logging.WARNING)
    for name in args.cases or CASES:
        start = time.perf_counter()
        step = measure(CASES[name], args.precision, args.set)
        print(f"\n==== {name}, {args.precision}: {step.describe}; counted in {time.perf_counter() - start:.0f} s")
        print(report(step, args.precision, args.places), flush=True)
    return 0


def measure(case: FullSize, precision: str, sets: Sequence[str] = ()) -> Any:
    """The recorded step of a case (tests.gpu.steps.Recorded)."""
    from tests.gpu import steps  # replaces torch.inference_mode before anything of the product is imported

    return steps.full_size_step(case.task, case.cfg, (*case.sets, *sets), precision, LIMIT, **case.sizes)


def report(step: Any, precision: str, places: bool = False) -> str:
    """The text about one step. step: tests.gpu.steps.Recorded."""
    waits = Counter(wait.phase for wait in step.waits)
    rows = [["phase", "ops", "kernels", "GFLOP", "GB", "device ms", "launch ms", "waits"]]
    groups = by(step.kernels, lambda kernel: kernel.phase)
    for phase in waits:
        groups.setdefault(phase, Sums())
    for phase, sums in groups.items():
        rows.append([phase, *_numbers(sums), str(waits[phase])])
    total = by(step.kernels, lambda _: "all")["all"]
    rows.append(["all", *_numbers(total), str(len(step.waits))])
    lines = [_table(rows), prediction(total, len(step.waits), step.samples, precision)]
    attention = Counter(kernel.name for kernel in step.kernels if "attention" in kernel.name)
    lines += [f"attention: {', '.join(f'{n} x {name}' for name, n in attention.items())}"]
    lines += ["waits, with the number of kernels that were queued since the step began:"]
    lines += [f"  {wait.queued:6d}  {wait.place}: {wait.kind}" for wait in step.waits]
    if places:
        lines += ["operators by device time:", *_largest(step.kernels, lambda k: k.name, lambda s: s.device)]
        lines += ["places by kernels:", *_largest(step.kernels, lambda k: k.place, lambda s: s.kernels)]
    return "\n".join(lines)


def prediction(total: Sums, waits: int, samples: int, precision: str) -> str:
    """The modelled time of a step: the slower of device and host."""
    host = total.kernels * LAUNCH + waits * WAIT
    seconds = max(total.device, host)
    return (
        f"model: device {total.device * 1e3:.1f} ms, host {host * 1e3:.1f} ms -> {seconds * 1e3:.1f} ms a step, "
        f"{samples / seconds:.0f} samples/s, MFU {total.flops / seconds / PEAK[precision]:.1%}; "
        f"products alone at the peak {total.flops / PEAK[precision] * 1e3:.2f} ms"
    )


def by(kernels: Sequence[Any], key: Callable[[Any], str]) -> dict[str, Sums]:
    groups: dict[str, Sums] = {}
    for kernel in kernels:
        groups.setdefault(key(kernel), Sums()).add(kernel)
    return groups


def _numbers(s: Sums) -> list[str]:
    launch = s.kernels * LAUNCH * 1e3
    return [
        *(str(s.ops), str(s.kernels), f"{s.flops / 1e9:.0f}", f"{s.moved / 1e9:.2f}"),
        *(f"{s.device * 1e3:.2f}", f"{launch:.2f}"),
    ]


def _largest(kernels: Sequence[Any], key: Callable[[Any], str], size: Callable[[Sums], float]) -> list[str]:
    groups = sorted(by(kernels, key).items(), key=lambda item: -size(item[1]))[:22]
    rows = [["", "ops", "kernels", "GFLOP", "GB", "device ms", "launch ms"]]
    return _table(rows + [[name, *_numbers(sums)] for name, sums in groups]).splitlines()


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        return "  ".join([row[0].ljust(widths[0]), *cells[1:]])

    return "\n".join(line(row) for row in rows)


if __name__ == "__main__":
    sys.exit(main())

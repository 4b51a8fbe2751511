"""Throughput against the size of the work, as images: python -m benchmarks.plots [--out output/plots] [--rounds 5]

VQA base on precomputed features, one training step, samples a second: against words, boxes, samples of a batch, and
processes that share the machine's threads and exchange gradients. Needs matplotlib (requirements-dev.txt).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from benchmarks.measure import device_name, interleaved, medians
from benchmarks.steps import NO_WEIGHTS, Step
from common import distributed
from common.config import Config, load_config
from common.data.synthetic import made_up_batch
from common.files.atomic import write_text
from common.nn.cpu.memory import keep_freed_memory
from common.precision import Precision
from common.task import load_task
from common.train.launch import free_port

CFG = "cfgs/vqa/base_4x16G_fp32.yaml"
USUAL = {"samples": 8, "words": 20, "boxes": 36}
SWEEPS: dict[str, Sequence[int]] = {
    "words": (10, 20, 40, 80, 160),
    "boxes": (10, 20, 36, 60, 100),
    "samples": (1, 2, 4, 8, 16, 32),
}
PROCESSES = (1, 2)


@dataclass(frozen=True)
class Work:
    """A training step of the sizes of `made_up_batch`, every sample of full size."""

    samples: int
    words: int
    boxes: int

    def step(self, model: torch.nn.Module, cfg: Config, precision: str, device: torch.device) -> Step:
        batch = made_up_batch(load_task("vqa").made_up, cfg, self.samples, self.words, self.boxes, equal=True)
        return Step(model, batch.to(device), Precision(precision, device))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("output/plots"), help="folder of the images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, dict[str, dict[int, float]]] = {
        name: sweep(name, sizes, args.rounds, args.precision, device) for name, sizes in SWEEPS.items()
    }
    found["processes"] = {
        precision: {count: processes(count, args.rounds, precision) for count in PROCESSES}
        for precision in args.precision
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / "figures.json", json.dumps({"device": device_name(device), **found}, indent=1) + "\n")
    for name, curves in found.items():
        draw(name, curves, device_name(device), args.out / f"{name}.png")


def sweep(
    name: str, sizes: Sequence[int], rounds: int, precisions: Sequence[str], device: torch.device
) -> dict[str, dict[int, float]]:
    """Samples a second by precision and size, every size and precision in turn."""
    keep_freed_memory(device)
    cfg = load_config("vqa", CFG, NO_WEIGHTS)
    model = load_task("vqa").build_model(cfg).to(device)
    works = {size: Work(**{**USUAL, name: size}) for size in sizes}
    steps = {f"{p} {size}": work.step(model, cfg, p, device) for p in precisions for size, work in works.items()}
    seconds = medians(interleaved({label: step.train for label, step in steps.items()}, rounds, device))
    return {p: {size: works[size].samples / seconds[f"{p} {size}"] for size in sizes} for p in precisions}


def processes(count: int, rounds: int, precision: str) -> float:
    """Samples a second of `count` processes together."""
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    threads = max(1, torch.get_num_threads() // count)
    multiprocessing.spawn(_rank, (count, free_port(), threads, rounds, precision, queue), nprocs=count)
    return count * USUAL["samples"] / queue.get()


def _rank(rank: int, count: int, port: int, threads: int, rounds: int, precision: str, queue: Any) -> None:
    """A process of `processes`; the first one puts the seconds of a step into the queue."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    keep_freed_memory(device)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    distributed.init_from_env(cuda)
    cfg = load_config("vqa", CFG, NO_WEIGHTS)
    model = distributed.wrap(load_task("vqa").build_model(cfg).to(device), device)
    step = Work(**USUAL).step(model, cfg, precision, device)
    seconds = medians(interleaved({"step": step.train}, rounds, device))["step"]
    if rank == 0:
        queue.put(seconds)
    distributed.barrier()
    del model, step
    distributed.shutdown()


def draw(name: str, curves: dict[str, dict[int, float]], device: str, path: Path) -> None:
    """One curve a precision."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for precision, curve in curves.items():
        axes.plot([*curve], [*curve.values()], marker="o", label=precision)
    fixed = ", ".join(f"{value} {what}" for what, value in USUAL.items() if what != name)
    axes.set(xlabel=name, ylabel="samples/s", title=f"VQA base, training step: {fixed}", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(title=device, title_fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    main()

"""The checks of a real GPU: `python -m tests.gpu.check`, also `make gpu-check`. At most ten minutes on one card.

Stages, in order: tests (those that need a GPU), golden (reference cases in fp32), curves (losses of the scenes configs
in fp32, bf16 and fp16), benchmark (samples/s, memory, MFU and waits at full size). Each stage writes its results to
<out>/results.json as it goes. A second run runs the stages that did not pass; --again repeats all.
At the end, <out>/rows.md has rows for docs/gpu.md; --docs also writes them there.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import device_name, matmul_peak, synchronise
from common.config import Config, load_config
from common.data.sample import Batch
from common.data.synthetic import made_up_batch
from common.files.atomic import write_text
from common.inspect.model_report import TOTAL, training_step
from common.metrics import MetricGroup
from common.precision import Precision
from common.task import load_task
from common.train.optim import build_optimizer
from common.train.schedules import LinearSchedule
from common.train.settings import TrainerSettings
from common.train.trainer import Trainer
from tests.paths import ROOT

OUT = ROOT / "output/gpu_check"
DOCS = ROOT / "docs/gpu.md"
BEGIN, END = "<!-- rows of make gpu-check -->", "<!-- end of the rows -->"
HEADER = "| device | workload | precision | samples/s | step ms | GiB | MFU | waits a step |"
# Dense peak of 16-bit products by a part of the device's name, FLOP/s. Elsewhere the peak is a measured product's.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
SECONDS = {"tests": 120, "golden": 150, "curves": 150, "benchmark": 240}  # limits of the stages
CURVES = {
    "vqa": ("vqa/train_end2end.py", "vqa/scenes.yaml"),
    "refcoco": ("refcoco/train_end2end.py", "refcoco/scenes.yaml"),
    "vcr": ("vcr/train_end2end.py", "vcr/scenes_q2a.yaml"),
    "pretrain": ("pretrain/train_end2end.py", "pretrain/scenes.yaml"),
}


@dataclass(frozen=True)
class Workload:
    """A config and the sizes of its batch, as made_up_batch takes them."""

    task: str
    cfg: str
    sizes: dict[str, Any]
    precisions: tuple[str, ...] = ("bf16",)
    changes: dict[str, Any] = field(default_factory=dict)


VQA = {"samples": 32, "words": 17, "boxes": 100}
WORKLOADS = {
    "VQA base": Workload("vqa", "vqa/base_4x16G_fp32.yaml", VQA, ("bf16", "fp32")),
    "VQA large": Workload("vqa", "vqa/large_4x16G_fp32.yaml", VQA),
    "pretraining base": Workload("pretrain", "pretrain/base_prec_4x16G_fp32.yaml", {"samples": 32}),
    "pretraining base from pixels": Workload("pretrain", "pretrain/base_e2e_16x16G_fp16.yaml", {"samples": 4}),
    "VCR base": Workload("vcr", "vcr/base_q2a_4x16G_fp32.yaml", {"samples": 4}),
    "RefCOCO+ base": Workload("refcoco", "refcoco/base_detected_regions_4x16G.yaml", {"samples": 4}),
}
SMALL = {
    "SCALES": [32, 48],
    "NETWORK.IMAGE_NUM_LAYERS": 50,
    "NETWORK.IMAGE_FINAL_DIM": 8,
    "NETWORK.VLBERT.hidden_size": 8,
    "NETWORK.VLBERT.visual_size": 8,
    "NETWORK.VLBERT.num_hidden_layers": 1,
    "NETWORK.VLBERT.num_attention_heads": 2,
    "NETWORK.VLBERT.intermediate_size": 16,
}


@dataclass
class Check:
    """device: where to compute. fast: tiny models and few steps, to try the script itself. deadline: of the stage."""

    device: torch.device
    out: Path
    fast: bool
    results: dict[str, Any] = field(default_factory=dict)
    deadline: float = float("inf")

    def keep(self, stage: str, found: Any, complete: bool = False) -> None:
        self.results[stage] = {"complete": complete, "found": found}
        write_text(self.out / "results.json", json.dumps(self.results, indent=1) + "\n")

    def left(self) -> float:
        return max(1.0, self.deadline - time.monotonic())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.check", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=OUT, help=f"default: {OUT.relative_to(ROOT)}")
    parser.add_argument("--only", nargs="+", choices=STAGES, help="stages to run (default: all)")
    parser.add_argument("--fast", action="store_true", help="tiny models and few steps, to try the script itself")
    parser.add_argument("--again", action="store_true", help="repeat complete stages")
    parser.add_argument("--docs", action="store_true", help=f"write the rows into {DOCS.relative_to(ROOT)}")
    args = parser.parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: PyTorch finds no CUDA device")
    args.out.mkdir(parents=True, exist_ok=True)
    check = Check(torch.device(args.device), args.out, args.fast)
    about = {"device": device_name(check.device), "torch": torch.__version__, "commit": commit(), "fast": args.fast}
    before = read_results(args.out / "results.json")
    check.results = before if before.get("about") == about and not args.again else {"about": about}
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    failed = [name for name in args.only or STAGES if not run_stage(name, check)]
    rows = table_rows(check.results)
    write_text(args.out / "rows.md", "\n".join([HEADER, "|" + "---|" * HEADER.count(" | ") + "---|", *rows]) + "\n")
    print((args.out / "rows.md").read_text())
    if args.docs:
        write_docs(DOCS, about["device"], rows)
    print(f"failed: {', '.join(failed)}" if failed else "all stages passed")
    return 1 if failed else 0


def run_stage(name: str, check: Check) -> bool:
    """Runs a stage that has not passed. Returns whether it passed."""
    if not check.results.get(name, {}).get("complete"):
        print(f"== {name}", flush=True)
        start = time.monotonic()
        check.deadline = start + SECONDS[name]
        try:
            found = STAGES[name](check)
            check.keep(name, found, complete=found["passed"])
        except Exception as error:  # the next stages still have something to report
            check.keep(name, {"passed": False, "error": f"{type(error).__name__}: {error}"})
        print(f"   {time.monotonic() - start:.0f} s: {short(check.results[name]['found'])}", flush=True)
    return bool(check.results[name]["found"].get("passed"))


# ---------------------------------------------------------------------------------------------- correctness


def run_tests(check: Check) -> dict[str, Any]:
    """The test files with a test that needs a GPU."""
    files = [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "needs_gpu" in p.read_text(encoding="utf-8")]
    done = python(check, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)
    return {"passed": done.returncode == 0, "tail": done.stdout.strip().splitlines()[-3:]}


def run_golden(check: Check) -> dict[str, Any]:
    """The reference cases of the modules, whose tolerances are those of fp32: without TF32."""
    only = ["--only", "D_*/vqa_*"] if check.fast else []
    done = python(check, "-m", "tests.golden", "tests/golden/cases", "--device", check.device.type, *only)
    lines = done.stdout.strip().splitlines()
    failures = [line for line in lines if line.startswith("FAIL")]
    return {"passed": done.returncode == 0, "failures": failures, "tail": lines[-1:] or done.stderr.splitlines()[-3:]}


def run_curves(check: Check) -> dict[str, Any]:
    """Training losses by task and precision. The last quarter of each must be below its first quarter."""
    updates, precisions = (4, ("fp32", "bf16")) if check.fast else (60, ("fp32", "bf16", "fp16"))
    tasks = ["vqa"] if check.fast else [*CURVES]
    curves: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        small = ("--train", "12", "--val", "4", "--test", "2") if check.fast else ()
        expect(python(check, "-m", "data.scenes", "--out", Path(folder) / "data/scenes-world", *small))
        for task in tasks:
            for precision in precisions:
                losses = train(check, task, precision, updates, Path(folder))
                curves.setdefault(task, {})[precision] = losses
                check.keep("curves", {"passed": False, "curves": curves})
    return {"passed": check.fast or all(falls(x) for of in curves.values() for x in of.values()), "curves": curves}


def train(check: Check, task: str, precision: str, updates: int, folder: Path) -> list[float]:
    """The logged losses of a run of the scenes config, in a folder with data/scenes-world."""
    script, cfg = CURVES[task]
    changes = {
        "OUTPUT_PATH": folder / f"{task}-{precision}",
        "DEVICE": check.device.type,
        "LOG_FREQUENT": 1 if check.fast else 5,
        "NUM_WORKERS_PER_GPU": 0,
        "TRAIN.PRECISION": precision,
        "TRAIN.MAX_STEPS": updates,
    }
    words = [ROOT / script, "--cfg", ROOT / "cfgs" / cfg, "--set", *(f"{k}={v}" for k, v in changes.items())]
    expect(python(check, *words, cwd=folder))
    (log,) = (folder / f"{task}-{precision}").rglob("metrics.jsonl")
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [round(line["Train-Loss"], 4) for line in lines if line["kind"] == "train"]


def falls(losses: Sequence[float]) -> bool:
    quarter = max(1, len(losses) // 4)
    return sum(losses[-quarter:]) < sum(losses[:quarter])


# ---------------------------------------------------------------------------------------------- benchmark


def run_benchmark(check: Check) -> dict[str, Any]:
    """Figures of each workload and precision. One that fails, as for want of memory, has its error."""
    rows: list[dict[str, Any]] = []
    for name, work in WORKLOADS.items():
        for precision in work.precisions:
            row: dict[str, Any] = {"workload": name, "precision": precision}
            try:
                row |= measure(check, work, precision)
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            rows.append(row)
            check.keep("benchmark", {"passed": False, "rows": rows})
            print(f"   {row}", flush=True)
    return {"passed": all("error" not in row for row in rows), "rows": rows}


def measure(check: Check, work: Workload, precision: str) -> dict[str, Any]:
    """Steps of the Trainer on one made-up batch in page-locked memory: seconds, memory, FLOPs, waits."""
    torch.manual_seed(0)
    cfg, task = load_config(work.task, ROOT / "cfgs" / work.cfg, workload_changes(check, work)), load_task(work.task)
    sizes = {"samples": 2, "words": 8, "boxes": 4} if check.fast else work.sizes
    batch = made_up_batch(task.made_up, cfg, equal=True, **sizes)
    model = task.build_model(cfg).to(check.device)
    flops = training_step(model, batch.to(check.device), cfg, Precision(precision, check.device))[0].flops[TOTAL]
    model.zero_grad(set_to_none=True)
    warm, steps = (1, 2) if check.fast else (5, 20)
    loader = Repeated(batch, check.device, warm, steps)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        trainer(cfg, model, task.build_metrics(cfg, True), Precision(precision, check.device), loader, folder).fit()
    seconds = loader.seconds / steps
    return {
        "samples_per_second": round(len(batch) / seconds, 1),
        "step_ms": round(seconds * 1e3, 2),
        "gib": round(loader.peak / 2**30, 2),
        "mfu": round(flops / seconds / peak(check, precision), 4),
        "waits": loader.waits,
    }


def workload_changes(check: Check, work: Workload) -> dict[str, Any]:
    return {"NETWORK.PARTIAL_PRETRAIN": ""} | work.changes | (SMALL if check.fast else {})


def trainer(
    cfg: Config, model: torch.nn.Module, metrics: MetricGroup, precision: Precision, loader: Repeated, folder: str
) -> Trainer:
    """A Trainer with an update each batch, without reports but the first."""
    return Trainer(
        model=model,
        optimizer=build_optimizer(cfg.TRAIN, model.named_parameters(), 1e-7),
        schedule=LinearSchedule(1, 1000),
        precision=precision,
        loader=loader,  # type: ignore[arg-type]
        metrics=metrics,
        settings=TrainerSettings(end_epoch=1, clip_norm=cfg.TRAIN.CLIP_GRAD_NORM, log_every=10**9, save_every=10**9),
        device=precision.device,
        directory=Path(folder),
        prefix="gpu-check",
    )


class Repeated:
    """A loader of one batch: `warm` times, then `steps` times with the clock running, then once to count waits.

    seconds: of the steps. peak: bytes of the GPU. waits: of one step, as PyTorch's sync_debug_mode reports them.
    """

    base_seed = 0
    lost = ""  # no worker of the loader

    def __init__(self, batch: Batch, device: torch.device, warm: int, steps: int) -> None:
        self.cuda = device.type == "cuda"
        self.batch, self.device = batch.pin_memory() if self.cuda else batch, device
        self.warm, self.steps = warm, steps
        self.seconds, self.peak, self.waits = 0.0, 0, 0

    def __len__(self) -> int:
        return self.warm + self.steps + 2

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterable[Batch]:
        for _ in range(self.warm):
            yield self.batch
        synchronise(self.device)
        begin = time.perf_counter()
        for _ in range(self.steps):
            yield self.batch
        synchronise(self.device)
        self.seconds = time.perf_counter() - begin
        if self.cuda:
            self.peak = torch.cuda.max_memory_allocated(self.device)
        yield from self._count_waits()
        yield self.batch  # the last batch writes a report, which waits too

    def _count_waits(self) -> Iterable[Batch]:
        if not self.cuda:
            yield self.batch
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            yield self.batch
            torch.cuda.set_sync_debug_mode("default")
        self.waits = sum("synchroniz" in str(w.message) for w in caught)


def peak(check: Check, precision: str) -> float:
    """FLOP/s: of the data sheet for a GPU that is listed, else of a matrix product measured here."""
    name = device_name(check.device)
    listed = next((value for part, value in PEAKS.items() if part in name), None)
    if listed is not None and precision != "fp32":
        return listed
    return matmul_peak(Precision(precision, check.device).dtype, check.device)


# ---------------------------------------------------------------------------------------------- parts of all


def table_rows(results: dict[str, Any]) -> list[str]:
    """Rows of the table under HEADER."""
    device = f"{results['about']['device']} ({results['about']['commit']})"
    rows = results.get("benchmark", {}).get("found", {}).get("rows", [])
    return [
        f"| {device} | {r['workload']} | {r['precision']} | {r['samples_per_second']:,.0f} | {r['step_ms']:.1f} "
        f"| {r['gib']:.1f} | {r['mfu']:.1%} | {r['waits']} |"
        for r in rows
        if "error" not in r
    ]


def write_docs(path: Path, device: str, rows: Sequence[str]) -> None:
    """Replaces the rows of `device` between BEGIN and END. Raises ValueError for a file without these lines."""
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path}: no lines {BEGIN!r} and {END!r} to write the rows between")
    head, rest = text.split(BEGIN, 1)
    old, tail = rest.split(END, 1)
    others = [line for line in old.splitlines() if line.startswith("| ") and not line.startswith(f"| {device} (")]
    lines = [line for line in others if line != HEADER]
    body = [HEADER, "|" + "---|" * 8, *lines, *rows]
    write_text(path, f"{head}{BEGIN}\n\n" + "\n".join(body) + f"\n\n{END}{tail}")


def python(check: Check, *words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs `python WORDS` with the repository's packages, at most until the stage's deadline."""
    command, env = [sys.executable, *map(str, words)], {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=check.left())


def expect(done: subprocess.CompletedProcess[str]) -> None:
    """Raises RuntimeError with the end of the output of a program that failed."""
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {done.stderr.strip()[-500:]}")


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "no commit"


def read_results(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def short(found: Any) -> str:
    text = json.dumps(found)
    return text if len(text) < 400 else text[:400] + "..."


STAGES: dict[str, Callable[[Check], dict[str, Any]]] = {
    "tests": run_tests,
    "golden": run_golden,
    "curves": run_curves,
    "benchmark": run_benchmark,
}

if __name__ == "__main__":
    logging.disable(logging.WARNING)
    sys.exit(main())

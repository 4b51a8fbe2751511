"""Report about a machine and the data of configs: `python -m common.doctor [--cfg FILE [--task NAME] [--deep]]`.

It prints versions, devices, the number formats in which a training step runs, free disk, and for each config whether
the data and weights that it names exist. With --deep it opens them: it counts records, makes some into samples, reads
region files and images, and loads weights.

Exit status: 1 where torch or torchvision cannot be imported, and with --cfg where something that this config needs is
missing or, with --deep, cannot be used. The problems are listed at the end. Otherwise 0.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import platform
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from common.config import load_config
from common.config.table import is_task
from common.errors import UserError
from common.needs import Need, run_needs

if TYPE_CHECKING:  # a machine where torch cannot be imported is reported too
    import torch

PACKAGES = ("torch", "torchvision", "transformers", "numpy", "tokenizers", "safetensors", "tensorboardX")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_fp16")
STEP_SIZE = 256  # width of the layer that a precision is tried on

CONFIG_PROBLEM = "cannot be used"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m common.doctor", description=__doc__.split("\n")[0])
    parser.add_argument("--cfg", type=Path, metavar="FILE", help="look at this config only (default: all under cfgs)")
    parser.add_argument("--task", metavar="NAME", help="task of --cfg (default: the name of its folder)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override its keys")
    parser.add_argument("--deep", action="store_true", help="open what it names: data, images, regions, weights")
    parser.add_argument("--samples", type=int, default=20, metavar="N", help="records of each kind that --deep opens")
    args = parser.parse_args(argv)
    if not args.cfg and (args.deep or args.set):
        parser.error("--deep and --set need --cfg")
    task = args.task or (args.cfg.resolve().parent.name if args.cfg else "")
    if args.cfg and not is_task(task):
        parser.error(
            f"there is no {task}/task.py" if args.task else f"--task is needed: the folder of {args.cfg} is no task"
        )
    files = [(task, args.cfg)] if args.cfg else all_configs()

    usable = report_environment()
    problems = report_configs(files, args.set)
    if args.deep and usable and not any(CONFIG_PROBLEM in problem for problem in problems):
        problems += look_deeper(task, args.cfg, args.set, args.samples)
    if not args.cfg:
        return 0 if usable else 1
    print(f"\n{len(problems)} problem{'s'[: len(problems) != 1]}{':' if problems else ''}")
    for problem in problems:
        print(f"  {problem}")
    return 0 if usable and not problems else 1


def all_configs(folder: Path = Path("cfgs")) -> list[tuple[str, Path]]:
    """Returns (task, file) of every YAML file in the folders of `folder` that are named like a task."""
    tasks = [path.name for path in sorted(folder.glob("*")) if path.is_dir() and is_task(path.name)]
    return [(task, file) for task in tasks for file in sorted((folder / task).glob("*.yaml"))]


def look_deeper(task: str, file: Path, overrides: Sequence[str], samples: int) -> list[str]:
    """Opens what a config names. Returns the problems."""
    from common.inspect.deep_check import deep_check

    with without_warnings():
        cfg = load_config(task, file, overrides)
    stores = [need.path for need in run_needs(task, cfg) if need.region_store and need.exists()]
    print()
    return deep_check(task, cfg, stores, samples)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silences warnings in the block: a run reports keys without effect itself."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def show(name: str, text: str) -> None:
    print(f"{name:<10} {text}")


# ---------------------------------------------------------------------------------------------- environment


def report_environment() -> bool:
    """Prints versions, processor, devices and precisions. Returns whether torch and torchvision can be imported."""
    show("python", f"{platform.python_version()} on {platform.platform()}")
    show("packages", ", ".join(f"{name} {version_of(name)}" for name in PACKAGES))
    try:
        import torch
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # the last two where compiled parts do not fit each other
        show("UNUSABLE", f"torch or torchvision cannot be imported: {error}")
        return False
    model, features = read_cpu()
    show("cpu", f"{model}: {os.cpu_count()} cores, {torch.get_num_threads()} threads; {', '.join(features) or 'plain'}")
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    for device in devices:
        properties = torch.cuda.get_device_properties(device)
        show(str(device), f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB")
    if not devices:
        show("gpu", "none that this PyTorch can use" + ("" if torch.version.cuda else " (it is built without CUDA)"))
    for device in [torch.device("cpu"), *devices[:1]]:
        tried = ", ".join(f"{name} {try_precision(name, device)}" for name in ("fp32", "bf16", "fp16"))
        show("precision", f"{device}: {tried} (a training step on {STEP_SIZE} x {STEP_SIZE})")
    return True


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def read_cpu(path: Path = Path("/proc/cpuinfo")) -> tuple[str, list[str]]:
    """Returns the name of the processor and which of CPU_FEATURES it has; without the file the name of the platform."""
    fields: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    return fields.get("model name") or platform.machine(), [name for name in CPU_FEATURES if name in flags]


def try_precision(name: str, device: torch.device) -> str:
    """Runs a matrix product, backward and an optimizer step. Returns "1.2 ms", or why it failed."""
    import torch

    from common.precision import Precision

    try:
        precision = Precision(name, device)
        layer = torch.nn.Linear(STEP_SIZE, STEP_SIZE).to(device)
        optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
        data = torch.randn(STEP_SIZE, STEP_SIZE, device=device)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            with precision.autocast():
                loss = layer(data).float().square().mean()
            precision.backward(loss)
            precision.unscale(optimizer)
            precision.step(optimizer)
            optimizer.zero_grad()
            if not loss.isfinite():
                return "NOT FINITE"
            times.append(1000 * (time.perf_counter() - start))
    except Exception as error:  # whatever a backend raises means the same: it does not work here
        return f"NO ({str(error).splitlines()[0][:80] if str(error) else type(error).__name__})"
    return f"{min(times):.1f} ms"


# ---------------------------------------------------------------------------------------------- configs


def report_configs(files: Iterable[tuple[str, Path]], overrides: Sequence[str] = ()) -> list[str]:
    """Prints free disk space, then a line for each folder that configs name and for each missing thing in it.

    Returns a line for each missing thing, and for each config that cannot be used.
    """
    users: dict[Need, set[str]] = defaultdict(set)  # names of the configs that have a need
    outputs: dict[int, Path] = {}  # device -> an output folder on it
    names, problems = [], []
    for task, file in files:
        name = f"{task}/{file.stem}"
        try:
            with without_warnings():
                cfg = load_config(task, file, overrides)
            needs = run_needs(task, cfg)
        except (UserError, OSError) as error:
            problems.append(f"{name} {CONFIG_PROBLEM}: {' '.join(str(error).split())}")
            show("config", problems[-1])
            continue
        names.append(name)
        output = existing(Path(cfg.OUTPUT_PATH))
        outputs.setdefault(output.stat().st_dev, output)
        for need in needs:
            users[need].add(name)
    for output in outputs.values():
        show("disk", f"{shutil.disk_usage(output).free / 2**30:.1f} GiB free for outputs, in {output.resolve()}")
    print(f"\n{len(names)} config{'s'[: len(names) != 1]}; paths from {Path.cwd()}")
    for folder in sorted({need.folder for need in users}):
        problems += report_folder(folder, {need: who for need, who in users.items() if need.folder == folder}, names)
    return problems


def report_folder(folder: Path, users: dict[Need, set[str]], names: Sequence[str]) -> list[str]:
    """Prints what of a folder exists. Returns a line for each missing thing.

    users: the needs in the folder, each with the names of its configs. names: of all configs.
    """
    missing = sorted((need for need in users if not need.exists()), key=lambda need: need.names)
    everyone = shorten(set[str]().union(*users.values()), names)
    if not folder.is_dir():
        print(f"MISSING  {folder}/ and {len(users)} things in it, for {everyone}")
    else:
        print(f"found    {folder}/: {len(users) - len(missing)} of {len(users)} things in it, for {everyone}")
        for need in missing:
            print(f"  MISSING  {' or '.join(need.names)}, for {shorten(users[need], names)}")
    return [f"missing: {need}" for need in missing]


def existing(path: Path) -> Path:
    """Returns the folder itself, or the nearest one above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def shorten(users: set[str], names: Sequence[str]) -> str:
    """Returns the names of some configs: <task>/* for all of a task, and a count for more than two of a task."""
    parts = []
    for task in dict.fromkeys(name.partition("/")[0] for name in names):
        every = [name for name in names if name.startswith(f"{task}/")]
        mine = [name for name in every if name in users]
        if mine:
            full, many = len(mine) == len(every) > 1, len(mine) > 2
            parts.append(f"{task}/*" if full else f"{len(mine)} of {task}" if many else ", ".join(mine))
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())

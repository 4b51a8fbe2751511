"""What works and what is there: `python -m common.doctor [--cfg FILE [--task NAME] [--deep]]`, on one screen.

Versions, devices, number formats that a training step really runs in, free disk, and for each config the data and
weights that it names: found or missing. With --deep they are opened: records counted, some made into samples, region
files and images read, weights loaded.

Exit status: 1 where torch or torchvision cannot be imported, and with --cfg where something that this config needs is
missing or, with --deep, does not work; the problems are listed at the end. Else 0.
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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.config import load_config
from common.config.keys import TASKS
from common.config.sections import dataset_sections
from common.inspect.needs import is_there, needs, region_stores

PACKAGES = ("torch", "torchvision", "transformers", "numpy", "tokenizers", "safetensors", "tensorboardX")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_fp16")
STEP_SIZE = 256  # width of the layer that a precision is tried on

CONFIG_PROBLEM = "cannot be used"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m common.doctor", description=__doc__.split("\n")[0])
    parser.add_argument("--cfg", type=Path, metavar="FILE", help="look at this config only (default: all under cfgs)")
    parser.add_argument("--task", choices=TASKS, help="task of --cfg (default: the name of its folder)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override its keys")
    parser.add_argument("--deep", action="store_true", help="open what it names: data, images, regions, weights")
    parser.add_argument("--samples", type=int, default=20, metavar="N", help="records of each kind that --deep opens")
    args = parser.parse_args(argv)
    if not args.cfg and (args.deep or args.set):
        parser.error("--deep and --set need --cfg")
    task = args.task or (args.cfg and args.cfg.resolve().parent.name)
    if args.cfg and task not in TASKS:
        parser.error(f"--task is needed: the folder of {args.cfg} is no task")
    files = [(task, args.cfg)] if args.cfg else [(t, f) for t in TASKS for f in sorted(Path("cfgs", t).glob("*.yaml"))]

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


def look_deeper(task: str, file: Path, overrides: Sequence[str], samples: int) -> list[str]:
    from common.inspect.deep_check import CAPTIONS, deep_check

    logging.disable(logging.WARNING)
    cfg = load_config(task, file, overrides)
    logging.disable(logging.NOTSET)
    others = [dataset for dataset in dataset_sections(cfg) if dataset.DATASET != CAPTIONS]
    stores = [store for dataset in others for store in region_stores(task, cfg, dataset)]
    print()
    return deep_check(task, cfg, list(dict.fromkeys(store for store in stores if is_there(store))), samples)


def show(name: str, text: str) -> None:
    print(f"{name:<10} {text}")


# ---------------------------------------------------------------------------------------------- environment


def report_environment() -> bool:
    """Prints versions, processor, devices and precisions; False where torch or torchvision does not import."""
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
    """Name of the processor, and which of CPU_FEATURES it has; what the platform says where there is no such file."""
    fields: dict[str, str] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    flags = fields.get("flags", "").split()
    return fields.get("model name") or platform.machine(), [name for name in CPU_FEATURES if name in flags]


def try_precision(name: str, device: Any) -> str:
    """A matrix product, backward and optimizer step: "1.2 ms", or why it did not run or gave no finite numbers."""
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

    Returns a line for each of those, and for each config that cannot be used.
    """
    wanted: dict[Path, dict[tuple[str, ...], set[str]]] = {}
    outputs: dict[int, Path] = {}
    names, problems = [], []
    logging.disable(logging.WARNING)  # keys without effect are the run's to report
    for task, file in files:
        name = f"{task}/{file.stem}"
        try:
            cfg = load_config(task, file, overrides)
        except (ValueError, OSError) as error:
            problems.append(f"{name} {CONFIG_PROBLEM}: {' '.join(str(error).split())}")
            show("config", problems[-1])
            continue
        names.append(name)
        output = existing(Path(cfg.OUTPUT_PATH))
        outputs.setdefault(output.stat().st_dev, output)
        for root, choices in needs(task, cfg):
            wanted.setdefault(root, {}).setdefault(choices, set()).add(name)
    logging.disable(logging.NOTSET)
    for output in outputs.values():
        show("disk", f"{shutil.disk_usage(output).free / 2**30:.1f} GiB free for outputs, in {output.resolve()}")
    print(f"\n{len(names)} config{'s'[: len(names) != 1]}; paths from {Path.cwd()}")
    for root, contents in sorted(wanted.items()):
        users = shorten(set[str]().union(*contents.values()), names)
        missing = {c: u for c, u in contents.items() if not any((root / choice).exists() for choice in c)}
        problems += [f"missing: {' or '.join(str(root / choice) for choice in choices)}" for choices in sorted(missing)]
        if not root.is_dir():
            print(f"MISSING  {root}/ and {len(contents)} things in it, for {users}")
        else:
            print(f"found    {root}/: {len(contents) - len(missing)} of {len(contents)} things in it, for {users}")
            for choices, whose in sorted(missing.items()):
                print(f"  MISSING  {' or '.join(choices)}, for {shorten(whose, names)}")
    return problems


def existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def shorten(users: set[str], names: Sequence[str]) -> str:
    """vqa/* where all configs of the task are meant; more than two of a task are counted."""
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

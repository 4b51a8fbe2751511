"""What works and what is there: `python -m common.doctor [--cfg FILE --task NAME]`, on one screen.

Versions, devices, number formats that a training step really runs in, free disk, and for each config the data and
weights that it names: found or missing. Exits with 0, with 1 where torch or torchvision cannot be imported.
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
from common.config_keys import TASKS

PACKAGES = ("torch", "torchvision", "transformers", "numpy", "tokenizers", "safetensors", "tensorboardX")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_fp16")
STEP_SIZE = 256  # width of the layer that a precision is tried on
SPLITS = ("TRAIN", "VAL", "TEST")
REGION_FORMS = ("", ".packed", ".zip")
LANGUAGE_FILES = ("pytorch_model.bin", "model.safetensors")

# A need: the folder that holds it, and names in it of which any one is enough.
Need = tuple[Path, tuple[str, ...]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m common.doctor", description=__doc__.split("\n")[0])
    parser.add_argument("--cfg", type=Path, metavar="FILE", help="look at this config only (default: all under cfgs)")
    parser.add_argument("--task", choices=TASKS, help="task of --cfg (default: the name of its folder)")
    args = parser.parse_args(argv)
    task = args.task or (args.cfg and args.cfg.resolve().parent.name)
    if args.cfg and task not in TASKS:
        parser.error(f"--task is needed: the folder of {args.cfg} is no task")
    files = [(task, args.cfg)] if args.cfg else [(t, f) for t in TASKS for f in sorted(Path("cfgs", t).glob("*.yaml"))]

    usable = report_environment()
    report_configs(files)
    return 0 if usable else 1


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


def report_configs(files: Iterable[tuple[str, Path]]) -> None:
    """Prints free disk space, then a line for each folder that configs name and for each missing thing in it."""
    wanted: dict[Path, dict[tuple[str, ...], set[str]]] = {}
    outputs: dict[int, Path] = {}
    names = []
    logging.disable(logging.WARNING)  # keys without effect are the run's to report
    for task, file in files:
        name = f"{task}/{file.stem}"
        try:
            cfg = load_config(task, file)
        except (ValueError, OSError) as error:
            show("config", f"{name} cannot be used: {' '.join(str(error).split())}")
            continue
        names.append(name)
        output = existing(Path(cfg.OUTPUT_PATH))
        outputs.setdefault(output.stat().st_dev, output)
        for root, choices in needs(cfg):
            wanted.setdefault(root, {}).setdefault(choices, set()).add(name)
    logging.disable(logging.NOTSET)
    for output in outputs.values():
        show("disk", f"{shutil.disk_usage(output).free / 2**30:.1f} GiB free for outputs, in {output.resolve()}")
    print(f"\n{len(names)} config{'s'[: len(names) != 1]}; paths from {Path.cwd()}")
    for root, contents in sorted(wanted.items()):
        users = shorten(set[str]().union(*contents.values()), names)
        missing = {c: u for c, u in contents.items() if not any((root / choice).exists() for choice in c)}
        if not root.is_dir():
            print(f"MISSING  {root}/ and {len(contents)} things in it, for {users}")
        else:
            print(f"found    {root}/: {len(contents) - len(missing)} of {len(contents)} things in it, for {users}")
            for choices, whose in sorted(missing.items()):
                print(f"  MISSING  {' or '.join(choices)}, for {shorten(whose, names)}")


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


def needs(cfg: Any) -> list[Need]:
    """What a run of a config reads: data sets, then weights."""
    found: list[Need] = []
    for dataset in cfg.DATASET if isinstance(cfg.DATASET, tuple) else [cfg.DATASET]:
        root = Path(dataset.DATASET_PATH) if dataset.DATASET_PATH else None
        if root is not None:
            found += [(root, choices) for choices in data_files(dataset)]
        if dataset.DATASET == "vqa":
            found.append(inside(dataset.ANSWER_VOCAB_FILE, root))
        if dataset.get("REGION_PATH"):
            found.append(inside(dataset.REGION_PATH, root, REGION_FORMS))
        if dataset.DATASET == "general_corpus":
            found += [inside(file) for file in listed(dataset, "ANNOTATION_FILE")]
    network = cfg.NETWORK
    language = Path(network.BERT_MODEL_NAME)
    found.append(inside(str(language / "vocab.txt"), language.parent))
    if network.BERT_PRETRAINED:
        found.append(inside(f"{network.BERT_PRETRAINED}-{network.BERT_PRETRAINED_EPOCH:04d}.model"))
    elif not (network.BERT_RANDOM_INIT or network.PARTIAL_PRETRAIN or network.VLBERT.get("from_scratch")):
        found.append((language.parent, tuple(f"{language.name}/{file}" for file in LANGUAGE_FILES)))
    if network.IMAGE_PRETRAINED and not network.IMAGE_FEAT_PRECOMPUTED:
        found.append(inside(f"{network.IMAGE_PRETRAINED}-{network.IMAGE_PRETRAINED_EPOCH:04d}.model"))
    if network.PARTIAL_PRETRAIN:
        found.append(inside(network.PARTIAL_PRETRAIN))
    return found


def inside(text: str, root: Path | None = None, forms: tuple[str, ...] = ("",)) -> Need:
    """A path of its own, under `root` where it lies there; forms: endings of which any one is enough."""
    path = Path(text)
    folder = root if root is not None and root in path.parents else path.parent
    return folder, tuple(f"{path.relative_to(folder)}{form}" for form in forms)


def data_files(dataset: Any) -> list[tuple[str, ...]]:
    """The main files under DATASET_PATH; pictures themselves only where nothing else shows that the data is there."""
    kind, sets = dataset.DATASET, listed(dataset, "IMAGE_SET")
    regions = "vgbua_res101_precomputed/{}_resnet101_faster_rcnn_genome{}"
    files: list[str] = []
    stores: list[str] = []
    if kind == "vqa":
        questions = "vqa/vqa_imdb/imdb_{}.npy" if dataset.USE_IMDB else "vqa/v2_OpenEnded_mscoco_{}_questions.json"
        suffix, trainval = ("_36", "trainval") if dataset.BOXES == "36" else ("", "trainval2014")
        files = [questions.format(name) for name in sets]
        stores = [regions.format("test2015" if name.startswith("test") else trainval, suffix) for name in sets]
    elif kind == "vcr":
        files, stores = listed(dataset, "ANNOTATION_FILE"), sets
    elif kind.startswith("refcoco"):
        files = [f"{kind}/refs(unc).p", f"{kind}/instances.json", "annotations/instances_train2014.json"]
        if any("proposal" in dataset[f"{split}_BOXES"] for split in SPLITS):
            official = dataset.PROPOSAL_SOURCE == "official"
            files += [f"{kind}/proposal/res101_coco_minus_refer_notime_dets.json"] if official else []
            stores = [] if official else [regions.format("trainval2014", "")]
    elif kind == "conceptual_captions":
        files, stores = [f"{name}_frcnn.json" for name in sets], [f"{name}_frcnn" for name in sets]
    elif kind == "coco_captions":
        files = [f"annotations/captions_{name}2017.json" for name in sets]
    if dataset.get("REGION_PATH"):
        stores = []
    choices = [(file,) for file in files] + [tuple(store + form for form in REGION_FORMS) for store in stores]
    return list(dict.fromkeys(choices))


def listed(dataset: Any, key: str) -> list[str]:
    """The names in <split>_<key> of all splits, which may be joined by +."""
    joined = "+".join(dataset[f"{split}_{key}"] for split in SPLITS)
    return list(dict.fromkeys(name.strip() for name in joined.split("+") if name.strip()))


if __name__ == "__main__":
    sys.exit(main())

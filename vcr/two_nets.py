"""What vcr/val.py and vcr/test.py share: a net for each half of the task, from its own config and checkpoint.

The letter of a half is that of its flags: a for question to answer, r for question and answer to rationale.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from common.config import Config

LETTERS = {"a": "Q2A", "r": "QA2R"}


@dataclass(frozen=True)
class Half:
    """One net. letter: "a" or "r". ckpt: None for the best checkpoint of the config's training run."""

    letter: str
    cfg: Config
    cfg_path: Path
    ckpt: Path | None


def add_arguments(parser: argparse.ArgumentParser, batch_key: str) -> None:
    """The flags of both commands. batch_key: what --a-bs and --r-bs override."""
    for letter, task in LETTERS.items():
        parser.add_argument(f"--{letter}-cfg", metavar="FILE", help=f"config of the {task} net")
        parser.add_argument(
            f"--{letter}-ckpt", metavar="FILE", help="its checkpoint (default: the best one of its training run)"
        )
        parser.add_argument(f"--{letter}-bs", type=int, metavar="N", help=f"its {batch_key}")
    parser.add_argument("--model-dir", metavar="DIR", help="put in front of OUTPUT_PATH, as in training")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="keys of both nets")
    parser.add_argument("--gpus", type=int, nargs="+", default=[0], metavar="GPU", help="one process for each")
    parser.add_argument("--fp16", action="store_true", help="compute in half precision")
    parser.add_argument("--use-cache", action="store_true", help="take results that are there, compute the others")


def load_halves(args: argparse.Namespace, batch_key: str, overrides: list[str]) -> list[Half]:
    """The halves that the command line has a config for.

    Raises ConfigError for a config of the other half, a checkpoint without config, and for what load_config refuses.
    """
    from common.cli import load_run_config
    from common.errors import ConfigError

    halves = []
    for letter, task in LETTERS.items():
        path, ckpt, size = (getattr(args, f"{letter}_{name}") for name in ("cfg", "ckpt", "bs"))
        if path is None:
            if ckpt is not None:
                raise ConfigError(f"--{letter}-ckpt {ckpt} without --{letter}-cfg")
            continue
        changes = [*args.set, *overrides]
        changes += [f"{batch_key}={size}"] if size is not None else []
        changes += ["TRAIN.PRECISION=fp16"] if args.fp16 else []
        flags = argparse.Namespace(cfg=path, set=changes, gpus=args.gpus, model_dir=args.model_dir)
        cfg = load_run_config("vcr", flags)
        if task != cfg.DATASET.TASK:
            raise ConfigError(f"--{letter}-cfg {path}: DATASET.TASK is {cfg.DATASET.TASK}, expected {task}")
        halves.append(Half(letter, cfg, Path(path), Path(ckpt) if ckpt else None))
    return halves


def start_group(halves: list[Half]) -> None:
    """Joins the processes of --gpus, before they have to agree about anything."""
    from common import distributed
    from common.weights.restore import wants_cuda

    if halves:
        distributed.init_from_env(cuda=wants_cuda(halves[0].cfg))

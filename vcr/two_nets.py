"""The two nets of VCR, for vcr/val.py and vcr/test.py: each has its own config and checkpoint.

The letter of a net is that of its flags: a for question to answer, r for question and answer to rationale.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import gpu_key, load_run_config, overrides
from common.config import Config

LETTERS = {"a": "Q2A", "r": "QA2R"}


@dataclass(frozen=True)
class NetFlags:
    """The flags of one net. cfg, ckpt: paths, None where they were not given. overrides: KEY=VALUE for its config."""

    letter: str
    cfg: Path | None
    ckpt: Path | None
    overrides: tuple[str, ...]
    model_dir: str | None


@dataclass(frozen=True)
class Half:
    """One net. letter: "a" or "r". ckpt: None for the best checkpoint of the config's training run."""

    letter: str
    cfg: Config
    cfg_path: Path
    ckpt: Path | None


def add_arguments(parser: argparse.ArgumentParser, batch_key: str) -> None:
    """The flags of both commands. batch_key: the key that --a-bs and --r-bs override."""
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


def net_flags(
    args: argparse.Namespace, batch_key: str, keys: dict[str, str | None] | None = None
) -> tuple[NetFlags, NetFlags]:
    """The flags of both nets. batch_key: as in `add_arguments`. keys: of flags of the command, for both configs."""

    def of(letter: str, cfg: str | None, ckpt: str | None, size: int | None) -> NetFlags:
        precision = "fp16" if args.fp16 else None
        changes = {**(keys or {}), batch_key: size, "TRAIN.PRECISION": precision, "GPUS": gpu_key(args.gpus)}
        return NetFlags(
            letter,
            cfg=Path(cfg) if cfg else None,
            ckpt=Path(ckpt) if ckpt else None,
            overrides=overrides(args.set, changes),
            model_dir=args.model_dir,
        )

    return of("a", args.a_cfg, args.a_ckpt, args.a_bs), of("r", args.r_cfg, args.r_ckpt, args.r_bs)


def load_halves(nets: Sequence[NetFlags]) -> list[Half]:
    """The nets that the command line has a config for.

    Raises ConfigError for a config of the other net, a checkpoint without config, and for what load_config refuses.
    """
    from common.errors import ConfigError

    halves = []
    for net in nets:
        if net.cfg is None:
            if net.ckpt is not None:
                raise ConfigError(f"--{net.letter}-ckpt {net.ckpt} without --{net.letter}-cfg")
            continue
        cfg = load_run_config("vcr", net.cfg, net.overrides, net.model_dir)
        task = LETTERS[net.letter]
        if task != cfg.DATASET.TASK:
            raise ConfigError(f"--{net.letter}-cfg {net.cfg}: DATASET.TASK is {cfg.DATASET.TASK}, expected {task}")
        halves.append(Half(net.letter, cfg, net.cfg, net.ckpt))
    return halves


def start_group(halves: Sequence[Half]) -> None:
    """Join the processes of --gpus, before they exchange anything."""
    from common.weights.restore import join_group

    if halves:
        join_group(halves[0].cfg)

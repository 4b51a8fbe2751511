"""Shared parts of the demos: command line, made-up world, training run, table, and choice of tiles."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from common.config import Config, load_config, replace
from common.task import Task, load_task
from common.train.run import run_training
from common.weights import checkpoint
from common.weights.loaded import Loaded
from common.weights.restore import load_trained, train_folder
from data.scenes.generate import World, write_world
from scripts.demos.contact_sheet import Tile

TINY = World(train=12, val=6, test=2)  # of --fast
FAST_WORLD = Path("output/scenes-fast/world")
FAST_KEYS = {"TRAIN.MAX_STEPS": 3, "TRAIN.WARMUP_STEPS": 1, "TRAIN.BATCH_IMAGES": 8, "NUM_WORKERS_PER_GPU": 0}
TILES, WRONG_TILES = 12, 3


@dataclass(frozen=True)
class Net:
    """One model of a demo. cfg: the complete config. path: the YAML file of the config."""

    task: Task
    cfg: Config
    path: Path

    @property
    def folder(self) -> Path:
        """Folder of the training run."""
        return train_folder(self.cfg, self.path)

    def with_keys(self, changes: Mapping[str, Any]) -> Net:
        """The same model under a config with other values. changes: by dotted key."""
        return dataclasses.replace(self, cfg=replace(self.cfg, changes))


@dataclass(frozen=True)
class Demo:
    """A demo that has started. world: folder of the made-up world. fast: --fast was given. start: perf_counter."""

    nets: list[Net]
    world: Path
    fast: bool
    start: float

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start


def start(
    argv: Sequence[str] | None, description: str, task: str, paths: Sequence[Path], world_files: Mapping[str, str]
) -> Demo:
    """Read the command line and the YAML files in `paths`, and make the world if it does not exist.

    world_files: config keys with paths relative to the folder of the world. Exits with status 2 for a command line, a
    working directory or a world that cannot be used.
    """
    parser = make_parser(description)
    parser.add_argument("--world", type=Path, help="folder of the world, made if missing (default: from the YAML)")
    args = parser.parse_args(argv)
    begin = time.perf_counter()
    check_files(parser, paths)
    changes = run_keys(args, FAST_WORLD.parent)
    if args.world or args.fast:
        changes |= files_of(args.world or FAST_WORLD, world_files)
    nets = [read_net(task, path, changes) for path in paths]
    world = Path(nets[0].cfg.DATASET.DATASET_PATH)
    try:
        counts = write_world(world, TINY if args.fast else World())
    except FileExistsError as error:
        parser.error(str(error))
    made = "is there" if counts is None else f"made: {counts['train']['images']} training images"
    print(f"world {world} {made}", flush=True)
    return Demo(nets, world, args.fast, begin)


def make_parser(description: str) -> argparse.ArgumentParser:
    """The options that all demos have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="folder of the run (default: OUTPUT_PATH of the YAML)")
    parser.add_argument("--seed", type=int, help="RNG_SEED of the run (default: from the YAML); --out keeps runs apart")
    parser.add_argument("--fast", action="store_true", help="little data and a few updates, to try the script itself")
    return parser


def check_files(parser: argparse.ArgumentParser, paths: Sequence[Path]) -> None:
    """Exits with status 2 where one of the files of this repository is not in the working directory."""
    for path in paths:
        if not path.is_file():
            parser.error(f"{path} is not here: start this from the repository root")


def run_keys(args: argparse.Namespace, fast_out: Path) -> dict[str, Any]:
    """Config keys that follow from the options of `make_parser`. fast_out: OUTPUT_PATH of --fast without --out."""
    changes: dict[str, Any] = dict(FAST_KEYS) if args.fast else {}
    if args.out or args.fast:
        changes["OUTPUT_PATH"] = str(args.out or fast_out)
    if args.seed is not None:
        changes["RNG_SEED"] = args.seed
    return changes


def files_of(world: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Values of config keys from paths relative to the folder of a world."""
    return {key: str(world / file) for key, file in files.items()}


def read_net(task: str, path: Path, changes: Mapping[str, Any]) -> Net:
    return Net(load_task(task), load_config(task, path, changes), path)


def train(net: Net) -> Loaded:
    """Train, resume an interrupted run or reuse a finished one. Returns the model of the best checkpoint."""
    logging.getLogger().setLevel(logging.INFO)
    if checkpoint.epoch_path(net.folder, net.cfg.MODEL_PREFIX, net.cfg.TRAIN.END_EPOCH - 1).is_file():
        print(f"a finished run is in {net.folder}: using it (remove the folder to train again)", flush=True)
    run_training(net.task, net.cfg, net.path)
    logging.getLogger().setLevel(logging.WARNING)  # the table follows
    return load_trained(net.task, net.cfg, net.path)


def percent(hits: Sequence[bool | float]) -> float:
    """The mean in percent. Raises ZeroDivisionError for none."""
    return 100 * sum(hits) / len(hits)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> str:
    """A table with aligned columns, the first one flush left; floats with one decimal."""
    cells = [list(header), *([f"{c:.1f}" if isinstance(c, float) else str(c) for c in row] for row in rows)]
    first, *others = (max(map(len, column)) for column in zip(*cells, strict=True))
    return "\n".join(
        f"{row[0]:<{first}}" + "".join(f"  {cell:>{w}}" for cell, w in zip(row[1:], others, strict=True))
        for row in cells
    )


def pick_tiles(tiles: Sequence[tuple[str, Tile]]) -> list[Tile]:
    """Up to TILES tiles of different images, evenly of all kinds; the last WRONG_TILES or fewer are not correct.

    tiles: (kind, tile) with a path as `image`.
    """
    shuffled = Random(0).sample(tiles, len(tiles))
    wrong = _pick([t for t in shuffled if not t[1].correct], WRONG_TILES, set())
    used = {tile.image for tile in wrong}
    return _pick([t for t in shuffled if t[1].correct], TILES - len(wrong), used) + wrong


def _pick(tiles: Sequence[tuple[str, Tile]], count: int, used: set[Any]) -> list[Tile]:
    """Up to `count` tiles of images that are not in `used`. Each tile is of the kind picked least so far."""
    picked: list[Tile] = []
    used, kinds = set(used), Counter[str]()
    while len(picked) < count and (free := [tile for tile in tiles if tile[1].image not in used]):
        kind, tile = min(free, key=lambda pair: kinds[pair[0]])
        picked.append(tile)
        used.add(tile.image)
        kinds[kind] += 1
    return picked


def write_scores(net: Net, scores: Mapping[str, Any]) -> None:
    """scores.json in the folder of the run."""
    (net.folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")

"""Training and testing from a config: builds the parts and runs them."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.deterministic
from torch import nn

from common import distributed
from common.config import Config
from common.data.dataset import TaskDataset
from common.data.loader import Loader, build_loader
from common.data.sample import Batch, ModelOutput
from common.errors import ConfigError
from common.files.atomic import atomic_write, remove_leftovers, write_text
from common.files.locks import locked
from common.log import RunWriter, setup_logging
from common.loggers import build_loggers, check_loggers
from common.metrics import MetricGroup
from common.nn.bert import EncoderLayer
from common.nn.cpu.memory import keep_freed_memory
from common.precision import Precision
from common.provenance import PACKAGE, made_with
from common.task import Record, Task
from common.train.compiling import check_compiler, compile_encoders
from common.train.evaluator import evaluate
from common.train.memory import log_forecast
from common.train.optim import build_optimizer
from common.train.plan import RunPlan
from common.train.schedules import build_schedule
from common.train.settings import TrainerSettings
from common.train.trainer import Trainer
from common.weights import checkpoint
from common.weights.foreign import load_initial_weights
from common.weights.loaded import Loaded
from common.weights.restore import (
    build_precision,
    join_group,
    load_trained,
    model_size,
    pick_device,
    train_folder,
)
from common.weights.safetensors_file import WEIGHTS
from common.weights.text_files import check_text_files, digests

log = logging.getLogger(__name__)

LOCK = "run.lock"  # in the folder of a run, while it trains


def run_training(task: Task, cfg: Config, cfg_path: Path, log_dir: str | None = None, cudnn: bool = True) -> Path:
    """Train by a config, resuming where TRAIN.RESUME or AUTO_RESUME is set. Returns the folder of the run.

    log_dir: folder of the TensorBoard files; None for one inside the folder of the run.
    Removes what killed runs left in the folder. Raises ConfigError if another run has it, UserError or
    FileNotFoundError for bad input, Stopped after a signal, FloatingPointError for a loss that is not finite.
    """
    if cfg.DEVICE == "mps":
        raise ConfigError("DEVICE mps is for prediction: train on cpu or cuda")
    torch.backends.cudnn.enabled = cudnn
    if cfg.TRAIN.DETERMINISTIC:
        compute_deterministically()
    join_group(cfg)
    device = pick_device(cfg)
    keep_freed_memory(device)
    folder = train_folder(cfg, cfg_path)
    with own_folder(folder):
        _train_in(folder, task, cfg, cfg_path, log_dir, device)
    return folder


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Holds the lock `run.lock` of an output folder on rank 0. Removes what killed runs left in it.

    Every rank must call it. Raises ConfigError on every rank if another run has the folder.
    """
    with locked(folder / LOCK) if distributed.is_main() else nullcontext("") as holder:
        holder = distributed.broadcast_object(holder)
        if holder:
            raise ConfigError(f"{folder}: another run writes here ({holder}): end it, or set another OUTPUT_PATH")
        if distributed.is_main():
            remove_leftovers(folder)
        yield


def _train_in(folder: Path, task: Task, cfg: Config, cfg_path: Path, log_dir: str | None, device: torch.device) -> None:
    setup_logging(folder / f"{cfg_path.stem}.log")
    base_seed = seed_everything(cfg.RNG_SEED)
    check_loggers(cfg.TRAIN.LOGGERS)
    if distributed.is_main():
        keep_config(cfg, cfg_path, folder)
    made = made_with(str(device), base_seed)
    log.info("made with: %s", ", ".join(f"{name} {value}" for name, value in made.items()))

    distributed.doing("reading the data sets")
    train_set, val_set = task.build_dataset(cfg, "train"), task.build_dataset(cfg, "val")
    loader = rank_loader(train_set, cfg, "train", device, base_seed)
    val_loader = rank_loader(val_set, cfg, "val", device, base_seed)
    distributed.check_agreement(common_facts(cfg, made, train_set, val_set))
    distributed.doing("building the model")
    plan = RunPlan.from_config(cfg, distributed.world_size(), len(loader))
    precision = build_precision(task, cfg, device)
    model = initial_model(task, cfg, train_set).to(device)
    if cfg.TRAIN.COMPILE:
        check_compiler(device)
        compile_encoders(model)
    size, train_count, val_count = model_size(model), len(loader.dataset), len(val_loader.dataset)
    log.info("%s on %s in %s; %d train and %d val samples", size, device, precision.name, train_count, val_count)
    log.info("%s", plan.describe())
    plan.check()

    log_forecast(task.made_up, cfg, model, precision)
    layers = [part for part in model.modules() if isinstance(part, EncoderLayer)]
    wrapped = distributed.wrap(model, device, layers if cfg.TRAIN.FSDP else None)
    optimizer = build_optimizer(cfg.TRAIN, model.named_parameters(), plan.base_lr)  # after FSDP, on its parameters
    loggers = partial(build_loggers, cfg.TRAIN.LOGGERS, folder, f"vl-bert-{task.name}", cfg_path.stem, cfg.to_dict())
    writer = RunWriter(folder, Path(log_dir) if log_dir else None, loggers)
    trainer = Trainer(
        model=wrapped,
        optimizer=optimizer,
        schedule=build_schedule(cfg.TRAIN, plan),
        precision=precision,
        loader=loader,
        metrics=task.build_metrics(cfg, True),
        device=device,
        settings=TrainerSettings.from_config(cfg, plan, task.main_metric(cfg)),
        directory=folder,
        prefix=cfg.MODEL_PREFIX,
        validate=validation(model, val_loader, device, precision, task.build_metrics(cfg, False)),
        writer=writer,
        read_late=device.type == "cuda",
        config=cfg.to_dict(),
        task=task.name,
        made_with=made,
        text_files=digests(task, cfg),
    )
    try:
        distributed.doing("loading the checkpoint to go on from")
        resume(trainer, cfg)
        trainer.made_with["seed"] = trainer.loader.base_seed  # a drawn seed is that of the first start
        trainer.fit()
    finally:
        writer.close()


def common_facts(
    cfg: Config,
    made: Mapping[str, Any],
    train_set: TaskDataset | list[TaskDataset],
    val_set: TaskDataset | list[TaskDataset],
) -> dict[str, Any]:
    """What all ranks of a run must have in common: versions, code, lengths of the data sets, and every config key."""
    facts = {name: made[name] for name in ("python", "torch", PACKAGE, "git_commit")}
    for split, given in (("training", train_set), ("validation", val_set)):
        facts[f"samples for {split}"] = [len(part) for part in (given if isinstance(given, list) else [given])]
    return facts | flat(cfg.to_dict())


def flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Dotted name -> value of nested mappings."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{path}{name}.") if isinstance(value, Mapping) else {f"{path}{name}": value}
    return found


def rank_loader(
    dataset: TaskDataset | list[TaskDataset],
    cfg: Config,
    split: str,
    device: torch.device,
    base_seed: int = 0,
    in_order: bool = False,
) -> Loader:
    """The loader of this process's share of "train", "val" or "test". in_order: ignore SHUFFLE."""
    rank, world, cuda = distributed.rank(), distributed.world_size(), device.type == "cuda"
    return build_loader(dataset, cfg, split, base_seed, rank=rank, world=world, cuda=cuda, in_order=in_order)


def initial_model(task: Task, cfg: Config, dataset: TaskDataset | list[TaskDataset]) -> nn.Module:
    """The model with the weights that training starts from. dataset: that of "train", for Task.after_loading."""
    model = task.build_model(cfg)
    load_initial_weights(model, cfg, task.adapt_pretrained(cfg))
    task.after_loading(model, dataset, cfg)
    return model


def validation(
    model: nn.Module, loader: Loader, device: torch.device, precision: Precision, metrics: MetricGroup
) -> Callable[[Callable[[], bool]], dict[str, float]]:
    """The `validate` of a Trainer: evaluates `model` on `loader`."""

    def validate(should_stop: Callable[[], bool]) -> dict[str, float]:
        with distributed.gathered(model):
            return evaluate(model, loader, device, precision, metrics, should_stop=should_stop, title="validate")[0]

    return validate


def resume(trainer: Trainer, cfg: Config) -> None:
    """Load the checkpoint to go on from: with RESUME that of epoch BEGIN_EPOCH - 1, with AUTO_RESUME the furthest one.

    Rank 0 finds the checkpoint, every rank loads it. Raises FileNotFoundError where it is not on every machine.
    """
    begin = cfg.TRAIN.BEGIN_EPOCH
    content: dict[str, Any] | None = None
    path: Path | None = None
    if cfg.TRAIN.RESUME:
        path = checkpoint.epoch_path(trainer.directory, trainer.prefix, begin - 1)
    elif cfg.TRAIN.AUTO_RESUME and distributed.is_main():
        end, check = cfg.TRAIN.END_EPOCH, trainer.check_state
        found = checkpoint.find_resume(trainer.directory, trainer.prefix, begin, end, check)
        path, content = found or (None, None)
    path = distributed.broadcast_object(path)
    if path is None:
        return
    if content is None:
        if not path.is_file() and not distributed.is_main():
            raise FileNotFoundError(
                f"checkpoint {path} is not here, but on rank 0: OUTPUT_PATH must be shared by all nodes"
            )
        content = checkpoint.load_file(path)
    check_text_files(content.get("text_files", {}), cfg, path)
    trainer.check_state(content, f"checkpoint {path}")
    trainer.load_state_dict(content, str(path), checkpoint.epoch_of(path, trainer.prefix))
    at = trainer.position
    log.info("going on from %s at epoch %d, batch %d", path, at.epoch, at.batch)


# ---------------------------------------------------------------------------------------------- testing


def predict(task: Task, cfg: Config, loaded: Loaded, split: str) -> tuple[list[Record], Any]:
    """Records of every sample of "val" or "test", to be joined by their ids, and the dataset.

    Several processes share the samples. Rank 0 returns the records of all, the others return none.
    """
    dataset = task.build_dataset(cfg, split)
    loader = rank_loader(dataset, cfg, split, loaded.device, in_order=True)

    def to_records(output: ModelOutput, batch: Batch) -> list[Record]:
        return task.to_records(output, batch, dataset)

    _, records = evaluate(
        loaded.model, loader, loaded.device, loaded.precision, to_records=to_records, title=f"predict {split}"
    )
    return records, dataset


@dataclass(frozen=True)
class WrittenResults:
    """path: the result file. summary: the task's text about it, may be empty."""

    path: Path
    summary: str


def run_test(
    task: Task,
    cfg: Config,
    cfg_path: Path,
    ckpt: Path | None = None,
    result_path: Path | None = None,
    result_name: str | None = None,
) -> WrittenResults:
    """Write the result file of DATASET.TEST_IMAGE_SET, and a link to its checkpoint beside it.

    Every process of a group must call this. Rank 0 writes, the others return an empty summary.
    """
    loaded = load_trained(task, cfg, cfg_path, ckpt)
    records, dataset = predict(task, cfg, loaded, "test")
    folder = result_path or Path(cfg.OUTPUT_PATH) / cfg_path.stem / f"{cfg.DATASET.TEST_IMAGE_SET}_test"
    path = folder / task.result_name(cfg, result_name or task.result_stem(cfg, cfg_path.stem))
    if not distributed.is_main():
        return WrittenResults(path, "")
    folder.mkdir(parents=True, exist_ok=True)
    task.write_results(records, dataset, path)
    weights = loaded.source / WEIGHTS if loaded.source.is_dir() else loaded.source
    kind = weights.suffix if weights.name == WEIGHTS else ".model"
    checkpoint.link(weights, folder / f"{cfg.MODEL_PREFIX}_test_ckpt_{cfg.DATASET.get('TASK', task.name)}{kind}")
    log.info("%d results of %s in %s", len(records), loaded.source, path)
    return WrittenResults(path, task.summary(records, dataset))


# ---------------------------------------------------------------------------------------------- parts of both


def seed_everything(seed: int) -> int:
    """Seed Python, NumPy and PyTorch with seed + rank, so that ranks draw different dropout masks.

    seed: below 0 draws one, the same for all ranks. Returns the seed without the rank, which samples are seeded with.
    """
    if seed < 0:
        seed = distributed.broadcast_object(random.SystemRandom().randrange(2**31))
    # Initial weights differ too, until `distributed.wrap` copies those of rank 0.
    local = seed + distributed.rank()
    random.seed(local)
    np.random.seed(local % 2**32)
    torch.manual_seed(local)
    return seed


def compute_deterministically() -> None:
    """From now on this process takes algorithms that return the same bits for the same input, or raises RuntimeError.

    Must be called before the process uses a GPU, which reads the setting of cuBLAS once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # a fixed workspace for each stream
    torch.backends.cudnn.benchmark = False  # it chooses algorithms by their time
    torch.backends.cudnn.deterministic = True
    # It finds faults, and costs a pass over each new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)


def keep_config(cfg: Config, cfg_path: Path, folder: Path) -> None:
    """Write the given YAML and the complete config (config.yaml) into the folder of a run."""
    import yaml

    if cfg_path.name != "config.yaml":
        with atomic_write(folder / cfg_path.name) as file:
            file.write(cfg_path.read_bytes())
    write_text(folder / "config.yaml", yaml.safe_dump(cfg.to_dict(), sort_keys=False))

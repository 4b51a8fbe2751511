"""Runs from a config: put the parts together, then train, test or evaluate."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import distributed
from common.config import Config
from common.data.loader import build_loader
from common.log import RunWriter, setup_logging
from common.nn.cpu.memory import keep_freed_memory
from common.task import Record, Task
from common.train.evaluator import evaluate
from common.train.memory import log_forecast
from common.train.optim import RunPlan, build_optimizer, build_schedule
from common.train.trainer import Trainer, TrainerSettings
from common.weights import checkpoint
from common.weights.foreign import load_initial_weights
from common.weights.loaded import Loaded
from common.weights.restore import (
    build_precision,
    load_trained,
    model_size,
    pick_device,
    train_folder,
    wants_cuda,
)

log = logging.getLogger(__name__)


def run_training(task: Task, cfg: Config, cfg_path: Path, log_dir: str | None = None, cudnn: bool = True) -> Path:
    """Train by a config, resuming where TRAIN.RESUME or AUTO_RESUME says so. Returns the folder of the run.

    Raises what its parts raise for bad input, Stopped after a signal, FloatingPointError for a loss that is not finite.
    """
    torch.backends.cudnn.enabled = cudnn
    distributed.init_from_env(cuda=wants_cuda(cfg))
    device = pick_device(cfg)
    keep_freed_memory(device)
    folder = train_folder(cfg, cfg_path)
    setup_logging(folder / f"{cfg_path.stem}.log")
    base_seed = seed_everything(cfg.RNG_SEED)
    if distributed.is_main():
        keep_config(cfg, cfg_path, folder)

    train_set, val_set = task.build_dataset(cfg, "train"), task.build_dataset(cfg, "val")
    place: dict[str, Any] = {
        "rank": distributed.rank(),
        "world": distributed.world_size(),
        "cuda": device.type == "cuda",
    }
    loader = build_loader(train_set, cfg, "train", base_seed, **place)
    val_loader = build_loader(val_set, cfg, "val", base_seed, **place)
    plan = RunPlan.from_config(cfg, distributed.world_size(), len(loader))
    precision = build_precision(task, cfg, device)

    model = task.build_model(cfg)
    load_initial_weights(model, cfg, task.adapt_pretrained(cfg))
    task.after_loading(model, train_set, cfg)
    model.to(device)
    log.info(
        "%s on %s in %s; %d train and %d val samples",
        model_size(model),
        device,
        precision.name,
        len(loader.dataset),
        len(val_loader.dataset),
    )
    log.info("%s", plan.describe())

    optimizer = build_optimizer(cfg.TRAIN, model.named_parameters(), plan.base_lr)
    log_forecast(task.made_up, cfg, model, precision)
    val_metrics = task.build_metrics(cfg, False)
    writer = RunWriter(folder, Path(log_dir) if log_dir else None)
    trainer = Trainer(
        model=distributed.wrap(model, device),
        optimizer=optimizer,
        schedule=build_schedule(cfg.TRAIN, plan),
        precision=precision,
        loader=loader,
        metrics=task.build_metrics(cfg, True),
        device=device,
        settings=trainer_settings(cfg, plan, task.main_metric(cfg)),
        directory=folder,
        prefix=cfg.MODEL_PREFIX,
        validate=lambda stop: evaluate(
            model, val_loader, device, precision, val_metrics, should_stop=stop, title="validate"
        )[0],
        writer=writer,
        config=cfg.to_dict(),
        task=task.name,
    )
    try:
        resume(trainer, cfg)
        trainer.fit()
    finally:
        writer.close()
    return folder


def trainer_settings(cfg: Config, plan: RunPlan, main_metric: str) -> TrainerSettings:
    return TrainerSettings(
        begin_epoch=cfg.TRAIN.BEGIN_EPOCH,
        end_epoch=cfg.TRAIN.END_EPOCH,
        accumulate=plan.micro_batches,
        clip_norm=cfg.TRAIN.CLIP_GRAD_NORM,
        nonfinite=cfg.TRAIN.NONFINITE,
        log_every=cfg.LOG_FREQUENT,
        validate_every=cfg.VAL_FREQUENT,
        save_every=cfg.CHECKPOINT_FREQUENT,
        save_updates=cfg.CHECKPOINT_STEPS,
        max_updates=cfg.TRAIN.MAX_STEPS,
        main_metric=main_metric,
    )


def resume(trainer: Trainer, cfg: Config) -> None:
    """Load the checkpoint to go on from: with RESUME epoch BEGIN_EPOCH - 1, with AUTO_RESUME the furthest one.

    Every rank loads the one that rank 0 finds. Raises FileNotFoundError where it is not on every machine.
    """
    begin = cfg.TRAIN.BEGIN_EPOCH
    content: dict[str, Any] | None = None
    path: Path | None = None
    if cfg.TRAIN.RESUME:
        path = checkpoint.epoch_path(trainer.directory, trainer.prefix, begin - 1)
    elif cfg.TRAIN.AUTO_RESUME and distributed.is_main():
        found = checkpoint.find_resume(trainer.directory, trainer.prefix, begin, cfg.TRAIN.END_EPOCH)
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
    trainer.load_state_dict(content, str(path), checkpoint.epoch_of(path, trainer.prefix))
    at = trainer.position
    log.info("going on from %s at epoch %d, batch %d", path, at.epoch, at.batch)


# ---------------------------------------------------------------------------------------------- testing


def predict(task: Task, cfg: Config, loaded: Loaded, split: str) -> tuple[list[Record], Any]:
    """Records of every sample of "val" or "test" in the order of the dataset, and the dataset.

    Several processes share the samples; rank 0 gets the records of all, the others none.
    """
    dataset = task.build_dataset(cfg, split)
    loader = build_loader(
        dataset,
        cfg,
        split,
        rank=distributed.rank(),
        world=distributed.world_size(),
        cuda=loaded.device.type == "cuda",
        in_order=True,
    )
    to_records: Callable[..., list[Record]] = lambda output, batch: task.to_records(output, batch, dataset)  # noqa: E731
    _, records = evaluate(
        loaded.model, loader, loaded.device, loaded.precision, to_records=to_records, title=f"predict {split}"
    )
    return loader.in_dataset_order(records) if records else [], dataset


@dataclass(frozen=True)
class WrittenResults:
    """path: the result file. summary: what the task tells about it, maybe nothing."""

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
    """Write the result file of DATASET.TEST_IMAGE_SET, and the checkpoint that it came from beside it.

    Every process of a group calls this; rank 0 writes, the others return an empty summary.
    """
    loaded = load_trained(task, cfg, cfg_path, ckpt)
    records, dataset = predict(task, cfg, loaded, "test")
    folder = result_path or Path(cfg.OUTPUT_PATH) / cfg_path.stem / f"{cfg.DATASET.TEST_IMAGE_SET}_test"
    path = folder / task.result_name(cfg, result_name or task.result_stem(cfg, cfg_path.stem))
    if not distributed.is_main():
        return WrittenResults(path, "")
    folder.mkdir(parents=True, exist_ok=True)
    task.write_results(records, dataset, path)
    checkpoint.link(loaded.source, folder / f"{cfg.MODEL_PREFIX}_test_ckpt_{cfg.DATASET.get('TASK', task.name)}.model")
    log.info("%d results of %s in %s", len(records), loaded.source, path)
    return WrittenResults(path, task.summary(records, dataset))


# ---------------------------------------------------------------------------------------------- parts of both


def seed_everything(seed: int) -> int:
    """Seed Python, NumPy and torch; below 0 draws a seed. Returns that of the samples, the same on every rank."""
    if seed < 0:
        seed = distributed.broadcast_object(random.SystemRandom().randrange(2**31))
    # Ranks draw different dropout masks; initial weights are made equal when the model is wrapped.
    local = seed + distributed.rank()
    random.seed(local)
    np.random.seed(local % 2**32)
    torch.manual_seed(local)
    return seed


def keep_config(cfg: Config, cfg_path: Path, folder: Path) -> None:
    """The YAML as it was given, and the complete config it led to."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    if cfg_path.name != "config.yaml":
        (folder / cfg_path.name).write_bytes(cfg_path.read_bytes())
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg.to_dict(), sort_keys=False), encoding="utf-8")

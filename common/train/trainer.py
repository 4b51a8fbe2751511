"""The training loop of all tasks: updates, validation, checkpoints, and an exact way back into them (spec 03)."""

from __future__ import annotations

import logging
import math
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from common import distributed
from common.data.loader import Loader
from common.data.sample import Batch, ModelOutput
from common.errors import CheckpointError
from common.log import RunWriter
from common.precision import Precision
from common.train.evaluator import Interrupted
from common.train.metrics import MetricGroup
from common.train.optim import (
    PlateauSchedule,
    Schedule,
    apply_lr,
    clip_grad_norm,
)
from common.weights import checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerSettings:
    """Numbers of a run; the config keys they come from in brackets.

    accumulate: micro-batches per update. clip_norm: largest gradient norm, off when <= 0 [TRAIN.CLIP_GRAD_NORM].
    nonfinite: "stop" or "skip" [TRAIN.NONFINITE]. Periods: log_every in batches [LOG_FREQUENT], validate_every and
    save_every in epochs [VAL_FREQUENT, CHECKPOINT_FREQUENT], save_updates in updates, 0 is off [CHECKPOINT_STEPS].
    max_updates: stop after so many, 0 is off [TRAIN.MAX_STEPS]. main_metric: chooses the best checkpoint.
    """

    begin_epoch: int = 0
    end_epoch: int = 1
    accumulate: int = 1
    clip_norm: float = -1.0
    nonfinite: str = "stop"
    log_every: int = 50
    validate_every: int = 1
    save_every: int = 1
    save_updates: int = 0
    max_updates: int = 0
    main_metric: str = ""


@dataclass
class Position:
    """How far a run is. epoch, batch: the next batch to train on. step, updates: batches and optimizer steps
    of the whole run.
    skipped: updates left out because a loss or gradient was not finite."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    updates: int = 0
    skipped: int = 0


class Stopped(Exception):  # noqa: N818 - a request that was followed, not an error
    """Training ended early because of a signal, after its position was saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


@dataclass
class Trainer:
    """Trains `model` on `loader`.

    model: what is called, perhaps wrapped for several processes; `module` inside it is what is saved.
    schedule: update number -> learning rate factor. validate: (asks whether to stop) -> metrics by name, or None.
    directory, prefix: checkpoints are `<directory>/<prefix>-%04d.model`. config, task: saved with them.
    base_seed: what the loader's samples are seeded with; a resumed run takes over that of its checkpoint.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    precision: Precision
    loader: Loader
    metrics: MetricGroup
    device: torch.device
    settings: TrainerSettings
    directory: Path
    prefix: str
    validate: Callable[[Callable[[], bool]], dict[str, float]] | None = None
    writer: RunWriter | None = None
    config: dict[str, Any] = field(default_factory=dict)
    task: str = ""
    position: Position = field(default_factory=Position)
    best_epoch: int = -1
    best_value: float = -1.0

    def __post_init__(self) -> None:
        self._signal = 0  # that this process got
        self._unsaved: OSError | None = None  # why the last checkpoint could not be written
        self._cycle: list[dict[str, Tensor]] = []  # losses of the micro-batches since the last update
        self._loss = torch.tensor(math.nan)
        self._grad_norm: Tensor | None = None
        self._start_window()
        self.position.epoch = max(self.position.epoch, self.settings.begin_epoch)

    @property
    def module(self) -> nn.Module:
        return getattr(self.model, "module", self.model)

    # ------------------------------------------------------------------------------------------ the loop

    def fit(self) -> None:
        """Train to the end epoch.

        Raises Stopped after SIGTERM or SIGINT, FloatingPointError for a non-finite loss, CheckpointError where the last
        checkpoint could not be written.
        """
        with self._signals():
            while self.position.epoch < self.settings.end_epoch and not self._enough():
                self._train_epoch()
                if self._enough() and self.position.batch < len(self.loader):
                    self._end_inside_epoch()
                else:
                    self._end_epoch()
        self._check_saved()

    def _train_epoch(self) -> None:
        at = self.position
        if at.batch == 0:
            self.metrics.reset()
        self.model.train()
        self._start_window()
        bar = tqdm(
            total=len(self.loader),
            initial=at.batch,
            desc=f"epoch {at.epoch}",
            unit="batch",
            disable=None if distributed.is_main() else True,
            leave=False,
        )
        with bar:
            for batch in self.loader.epoch(at.epoch, at.batch):
                updated = (at.step + 1) % self.settings.accumulate == 0
                # Gradients that wait for the next epoch are in its first checkpoint, which all ranks load: they must
                # be those of all ranks.
                exchange = updated or at.batch + 1 == len(self.loader)
                with distributed.gradient_exchange(self.model, exchange):
                    self._micro_step(batch.to(self.device))
                at.batch += 1
                at.step += 1
                if updated:
                    self._update()
                bar.update()
                if (at.batch - 1) % self.settings.log_every == 0 or at.batch == len(self.loader):
                    self._report()
                if updated and self.settings.save_updates and at.updates % self.settings.save_updates == 0:
                    self.save(checkpoint.latest_path(self.directory, self.prefix))
                if exchange or not distributed.is_distributed():
                    self._stop_if_asked()
                if self._enough():
                    return

    def _micro_step(self, batch: Batch) -> None:
        with self.precision.autocast():
            output: ModelOutput = self.model(batch)
        if output.loss is None:
            raise ValueError("the training batch has no targets, so the model gave no loss")
        self.precision.backward(output.loss / self.settings.accumulate)
        self._loss = output.loss.detach()
        self._cycle.append({"loss": self._loss, **{k: v.detach() for k, v in output.losses.items()}})
        with torch.no_grad():
            self.metrics.update(output.values(batch.targets))
        self._samples += batch.num_samples

    def _update(self) -> None:
        """One optimizer step: update k uses the learning rate of schedule(k) (spec 03 §5)."""
        at = self.position
        at.updates += 1
        apply_lr(self.optimizer, self.schedule(at.updates))
        self.precision.unscale(self.optimizer)
        limit = self.settings.clip_norm if self.settings.clip_norm > 0 else math.inf
        self._grad_norm = clip_grad_norm(self.module.parameters(), limit, self.optimizer)
        if not distributed.any_rank(not self._is_finite()):
            self.precision.step(self.optimizer)
        else:
            self._not_finite()
        self.optimizer.zero_grad(set_to_none=True)
        self._cycle.clear()

    def _is_finite(self) -> bool:
        """One look at the device for all losses since the last update, and the gradient where nothing rescales it."""
        values = [losses["loss"] for losses in self._cycle]
        if self.precision.scaler is None and self._grad_norm is not None:
            values.append(self._grad_norm)
        return bool(torch.stack([v.float().reshape(()) for v in values]).isfinite().all())

    def _not_finite(self) -> None:
        at = self.position
        losses = [{k: round(float(v.mean()), 6) for k, v in one.items()} for one in self._cycle]
        norm = "" if self._grad_norm is None else f", gradient norm {float(self._grad_norm)}"
        text = (
            f"epoch {at.epoch} batch {at.batch - 1}, update {at.updates}: loss or gradient not finite: {losses}{norm}"
        )
        if self.settings.nonfinite == "stop":
            raise FloatingPointError(text + ". Set TRAIN.NONFINITE skip to leave such updates out")
        self.precision.skip()
        at.skipped += 1
        log.warning("%s; update left out, %d so far", text, at.skipped)

    # ------------------------------------------------------------------------------------------ ends of epochs

    def _end_epoch(self) -> None:
        """Validate, save, and move on to the next epoch."""
        at, s = self.position, self.settings
        last = at.epoch + 1 == s.end_epoch or self._enough()
        improved = self._validate() if last or (at.epoch + 1) % s.validate_every == 0 else False
        epoch = at.epoch
        at.epoch, at.batch = epoch + 1, 0
        path = checkpoint.epoch_path(self.directory, self.prefix, epoch)
        best = checkpoint.best_path(self.directory, self.prefix)
        if last or (epoch + 1) % s.save_every == 0:
            self.save(path, also=best if improved else None)
            if distributed.is_main() and self._unsaved is None:
                checkpoint.remove_positions(self.directory, self.prefix)
        elif improved:
            self.save(best)

    def _end_inside_epoch(self) -> None:
        """The last update that was asked for is done: validate, and keep the position for a longer run."""
        improved = self._validate(end_of_epoch=False)
        best = checkpoint.best_path(self.directory, self.prefix)
        self.save(checkpoint.latest_path(self.directory, self.prefix), also=best if improved else None)

    def _validate(self, end_of_epoch: bool = True) -> bool:
        """Run validation; True when the main metric reached a new best. A plateau is one of ends of epochs."""
        if self.validate is None:
            return False
        try:
            values = self.validate(lambda: self._signal != 0)
        except Interrupted:
            self._stop_if_asked()
            raise  # not reached: whoever interrupted has a signal
        at = self.position
        if self.writer is not None:
            self.writer.write("val", at.epoch + 1, {f"Val-{k}": v for k, v in values.items()}, epoch=at.epoch)
        main = values.get(self.settings.main_metric, math.nan)
        if end_of_epoch and isinstance(self.schedule, PlateauSchedule):
            self.schedule.observe(main)
        improved = main > self.best_value
        if improved:
            self.best_value, self.best_epoch = main, at.epoch
        shown = ", ".join(f"{k} {v:.6f}" for k, v in values.items())
        log.info("Epoch[%d] validation: %s (best %.6f in epoch %d)", at.epoch, shown, self.best_value, self.best_epoch)
        return improved

    def _enough(self) -> bool:
        return 0 < self.settings.max_updates <= self.position.updates

    # ------------------------------------------------------------------------------------------ reports

    def _start_window(self) -> None:
        """Speed is measured from here to the next report."""
        self._samples, self._since, self._from_step = 0, time.perf_counter(), self.position.step

    def _report(self) -> None:
        at, elapsed = self.position, time.perf_counter() - self._since
        speed = self._samples * distributed.world_size() / elapsed
        remaining = (self.settings.end_epoch - at.epoch) * len(self.loader) - at.batch
        eta = remaining * elapsed / max(1, at.step - self._from_step)
        values = {f"Train-{k}": v for k, v in self.metrics.compute().items()}
        values["Train-Loss"] = float(self._loss) / self.settings.accumulate
        if self._grad_norm is not None and self.settings.clip_norm > 0:
            values["grad-para/Total-Norm"] = float(self._grad_norm)
        for i, group in enumerate(self.optimizer.param_groups):
            values[f"Initial-LR/Group_{i}"], values[f"LR/Group_{i}"] = group["initial_lr"], group["lr"]
        if self.writer is not None:
            self.writer.write("train", at.step, values, epoch=at.epoch, batch=at.batch, samples_per_second=speed)
        shown = ", ".join(f"{k.removeprefix('Train-')} {v:.6f}" for k, v in values.items() if k.startswith("Train-"))
        log.info(
            "Epoch[%d] Batch [%d/%d] %.1f samples/s, ETA %s: %s, lr %.3g",
            *(
                at.epoch,
                at.batch,
                len(self.loader),
                speed,
                _duration(eta),
                shown,
                self.optimizer.param_groups[-1]["lr"],
            ),
        )
        self._start_window()

    # ------------------------------------------------------------------------------------------ stopping

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask for a stop after the current batch; a second SIGINT interrupts at once."""
        before: dict[int, Any] = {}

        def ask(signum: int, frame: Any) -> None:
            self._signal = signum
            log.warning("%s: saving the position after this batch", signal.Signals(signum).name)
            signal.signal(signal.SIGINT, before[signal.SIGINT])

        try:
            for kind in (signal.SIGTERM, signal.SIGINT):
                before[kind] = signal.signal(kind, ask)
        except ValueError:  # only the main thread may handle signals
            before = {}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _stop_if_asked(self) -> None:
        """Every rank must call it: a signal may have reached some of them only, and all stop at the same batch."""
        stop = distributed.all_reduce_max(self._signal)
        if stop:
            path = checkpoint.latest_path(self.directory, self.prefix)
            self.save(path)
            at = self.position
            self._check_saved()
            log.warning("stopped at epoch %d batch %d; the same command goes on from %s", at.epoch, at.batch, path)
            raise Stopped(stop)

    # ------------------------------------------------------------------------------------------ state

    def save(self, path: Path, also: Path | None = None) -> None:
        """Write a checkpoint on rank 0, and a second name for it. Every rank must call it.

        A disk that is full is told in the log and does not end the run, which saves again later; what was saved before
        stays.
        """
        state = self.state_dict()
        if not distributed.is_main():
            return
        try:
            if path == checkpoint.latest_path(self.directory, self.prefix):
                checkpoint.keep_previous(self.directory, self.prefix)
            checkpoint.save_file(path, state)
            if also is not None:
                checkpoint.link(path, also)
            self._unsaved = None
        except OSError as error:
            self._unsaved = error
            log.error("checkpoint %s could not be written: %s. The run goes on without it", path, error)

    def _check_saved(self) -> None:
        if self._unsaved is not None:
            raise CheckpointError(
                f"the last checkpoint could not be written ({self._unsaved}); the one before is in {self.directory}"
            ) from self._unsaved

    def state_dict(self) -> dict[str, Any]:
        pending = {}
        if self.position.step % self.settings.accumulate:  # gradients that the next update will use
            pending = {k: p.grad for k, p in self.module.named_parameters() if p.grad is not None}
        return {
            "state_dict": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "validation_monitor": {"best_epoch": self.best_epoch, "best_val": self.best_value},
            "run": {
                "position": vars(self.position).copy(),
                "batches_per_epoch": len(self.loader),
                "base_seed": self.loader.base_seed,
                "accumulate": self.settings.accumulate,
                "precision": self.precision.state_dict(),
                "plateau": self.schedule.state_dict() if isinstance(self.schedule, PlateauSchedule) else None,
                "metrics": self.metrics.state_dict(),
                "gradients": pending,
                "rng": distributed.gather_objects(rng_state()),  # of each rank
            },
            "config": self.config,
            "task": self.task,
        }

    def load_state_dict(self, state: dict[str, Any], source: str, epoch: int | None = None) -> None:
        """Go on where a checkpoint was written. epoch: of the file name, for files of the original, which know no more.

        Raises CheckpointError when weights or optimizer do not fit, or when a position inside an epoch means other
        batches now.
        """
        checkpoint.load_model(self.module, state["state_dict"], source)
        initial = [group["initial_lr"] for group in self.optimizer.param_groups]
        if "optimizer" not in state:
            raise CheckpointError(f"{source} has no optimizer to go on with: give it as PARTIAL_PRETRAIN")
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"{source}: its optimizer is not the configured one ({error}); TRAIN.OPTIMIZER and LR_MULT must stay"
            ) from error
        for group, lr in zip(self.optimizer.param_groups, initial, strict=True):
            group["initial_lr"] = lr  # the learning rate of the config, not that of the file
        monitor = state.get("validation_monitor") or {}
        self.best_epoch, self.best_value = int(monitor.get("best_epoch", -1)), float(monitor.get("best_val", -1.0))
        if "run" in state:
            self._load_run(state["run"], source)
        elif epoch is not None:
            step = (epoch + 1) * len(self.loader)
            self.position = Position(epoch + 1, 0, step, step // self.settings.accumulate)
        apply_lr(self.optimizer, self.schedule(self.position.updates))

    def _load_run(self, run: dict[str, Any], source: str) -> None:
        position = Position(**run["position"])
        now = (len(self.loader), self.settings.accumulate)
        then = (run["batches_per_epoch"], run["accumulate"])
        if position.batch and now != then:
            raise CheckpointError(
                f"{source} stands inside epoch {position.epoch}, at batch {position.batch}; an epoch had {then[0]} "
                f"batches and {then[1]} batches an update, now {now[0]} and {now[1]}. Use the same batch size "
                f"and processes, or start from the epoch's checkpoint"
            )
        self.position = position
        self.loader.base_seed = run["base_seed"]
        self.precision.load_state_dict(run["precision"])
        if isinstance(self.schedule, PlateauSchedule) and run["plateau"]:
            self.schedule.load_state_dict(run["plateau"])
        self.metrics.load_state_dict(run["metrics"])
        parameters = dict(self.module.named_parameters())
        for name, grad in run["gradients"].items():
            parameters[name].grad = grad.to(self.device)
        if len(run["rng"]) == distributed.world_size():
            set_rng_state(run["rng"][distributed.rank()])
        else:
            log.warning("%s is of %d processes: random numbers start anew", source, len(run["rng"]))


def rng_state() -> dict[str, Any]:
    """The state of every generator a model may draw from, in types that load weights-only."""
    kind, keys, pos, has_gauss, gauss = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(pos),
            int(has_gauss),
            float(gauss),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, pos, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), pos, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _duration(seconds: float) -> str:
    """ "1d 2h 3m 4s" """
    minutes = int(seconds // 60)
    parts = {"d": minutes // 1440, "h": minutes // 60 % 24, "m": minutes % 60, "s": int(seconds % 60)}
    return " ".join(f"{n}{unit}" for unit, n in parts.items() if n) or "0s"

"""The training loop of all tasks: updates, validation, checkpoints."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from common import distributed
from common.data.sample import Batch, ModelOutput
from common.errors import CheckpointError, WorkerError
from common.log import RunWriter
from common.train.adamw import AdamW
from common.train.evaluator import Interrupted
from common.train.optim import apply_lr, divide_gradients, measure_clipping
from common.train.progress import Progress, format_duration
from common.train.schedules import PlateauSchedule
from common.train.signals import Stopped, StopSignals
from common.train.trainer_state import TrainerState
from common.weights import checkpoint

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Trainer(TrainerState):
    """Trains `model` on `loader`.

    directory, prefix: checkpoints are `<directory>/<prefix>-%04d.model`.
    validate: takes a function that returns whether to stop, and returns metrics by name; None for no validation.
    """

    device: torch.device
    directory: Path
    prefix: str
    validate: Callable[[Callable[[], bool]], dict[str, float]] | None = None
    writer: RunWriter | None = None

    def __post_init__(self) -> None:
        self._signals = StopSignals()
        self._unsaved: OSError | None = None  # why the last checkpoint could not be written
        self._cycle: list[dict[str, Tensor]] = []  # losses of the micro-batches since the last update
        self._loss = torch.tensor(math.nan)
        self._grad_norm: Tensor | None = None
        self._progress = Progress()
        self.position.epoch = max(self.position.epoch, self.settings.begin_epoch)

    # ------------------------------------------------------------------------------------------ the loop

    def fit(self) -> None:
        """Train to the end epoch.

        Raises Stopped after a signal of STOPS, WorkerError for a loader worker that ended, FloatingPointError for a
        non-finite loss, CheckpointError where the last checkpoint could not be written.
        """
        with self._signals.handled(), self._saving_for_lost_worker():
            while self.position.epoch < self.settings.end_epoch and not self._enough():
                self._train_epoch()
                if self._enough() and self.position.batch < len(self.loader):
                    self._end_inside_epoch()
                else:
                    self._end_epoch()
        self._check_saved()

    @contextmanager
    def _saving_for_lost_worker(self) -> Iterator[None]:
        """Save the position where a loader raises WorkerError, which it does between two batches.

        In a group the other ranks are inside a batch and cannot take part.
        """
        try:
            yield
        except WorkerError:
            if not distributed.is_distributed():
                self._save_position()
            raise

    def _train_epoch(self) -> None:
        at = self.position
        if at.batch == 0:
            self.metrics.reset()
        self.model.train()
        self._progress.start(at.step)
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
                self._train_batch(batch)
                bar.update()
                if self._enough():
                    return

    def _train_batch(self, batch: Batch) -> None:
        """Forward, backward and what is due after this batch: an update, a report, a checkpoint, a stop."""
        at, s = self.position, self.settings
        updates = (at.step + 1) % s.accumulate == 0
        last = at.batch + 1 == len(self.loader)
        # The checkpoint of an epoch holds the gradients that wait for the next one. All ranks load them from it, so
        # they must be averaged at the end of an epoch too.
        exchange = updates or last
        with distributed.gradient_exchange(self.model, exchange):
            self._micro_step(batch.to(self.device))
        at.batch += 1
        at.step += 1
        if updates:
            self._update()
        if (at.batch - 1) % s.log_every == 0 or last:
            self._report()
        if updates and s.save_updates and at.updates % s.save_updates == 0:
            self.save(checkpoint.latest_path(self.directory, self.prefix))
        if exchange or not distributed.is_distributed():
            self._stop_if_asked()

    def _micro_step(self, batch: Batch) -> None:
        with self.precision.autocast():
            output: ModelOutput = self.model(batch)
        if output.loss is None:
            raise ValueError("the training batch has no targets, so the model returned no loss")
        self.precision.backward(output.loss / self.settings.accumulate)
        self._loss = output.loss.detach()
        self._cycle.append({"loss": self._loss, **{k: v.detach() for k, v in output.losses.items()}})
        with torch.no_grad():
            self.metrics.update(output.values(batch.targets))
        self._progress.count(batch.num_samples)

    def _update(self) -> None:
        """One optimizer step. Update k, counted from 1, uses the learning rate of schedule(k)."""
        at = self.position
        at.updates += 1
        apply_lr(self.optimizer, self.schedule(at.updates))
        self.precision.unscale(self.optimizer)
        limit = self.settings.clip_norm if self.settings.clip_norm > 0 else math.inf
        self._grad_norm, divisor = measure_clipping(self.module.parameters(), limit)
        if distributed.any_rank(not self._is_finite()):
            self._not_finite()
        else:
            self._step(divisor)
        self.optimizer.zero_grad(set_to_none=True)
        self._cycle.clear()

    def _step(self, divisor: Tensor | None) -> None:
        """The optimizer step on the gradients divided by `divisor`, which clips them."""
        if isinstance(self.optimizer, AdamW):
            self.precision.step(self.optimizer, grad_scale=divisor)  # one pass over all gradients less
            return
        if divisor is not None:
            divide_gradients(self.module.parameters(), divisor)
        self.precision.step(self.optimizer)

    def _is_finite(self) -> bool:
        """Whether all losses since the last update are finite, and the gradient norm unless a loss scale handles it.

        Waits for the device once.
        """
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

    def _enough(self) -> bool:
        return 0 < self.settings.max_updates <= self.position.updates

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
                checkpoint.remove_older_epochs(self.directory, self.prefix, s.keep_epochs, epoch)
        elif improved:
            self.save(best, without_run=s.best_weights)

    def _end_inside_epoch(self) -> None:
        """After the last update of max_updates: validate, and keep the position for a longer run."""
        improved = self._validate(end_of_epoch=False)
        best = checkpoint.best_path(self.directory, self.prefix)
        self.save(checkpoint.latest_path(self.directory, self.prefix), also=best if improved else None)

    def _validate(self, end_of_epoch: bool = True) -> bool:
        """Run validation. Returns whether the main metric reached a new best.

        A plateau schedule counts epochs, so it observes validations at the ends of epochs only.
        """
        if self.validate is None:
            return False
        try:
            values = self.validate(lambda: self._signals.signum != 0)
        except Interrupted:
            self._stop(distributed.all_reduce_max(self._signals.signum))
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

    # ------------------------------------------------------------------------------------------ reports

    def _report(self) -> None:
        """Write the numbers of training since the last report to the log and the writer."""
        at, batches = self.position, len(self.loader)
        remaining = (self.settings.end_epoch - at.epoch) * batches - at.batch
        speed, eta = self._progress.measure(at.step, remaining, distributed.world_size())
        values = self._training_values()
        if self.writer is not None:
            self.writer.write("train", at.step, values, epoch=at.epoch, batch=at.batch, samples_per_second=speed)
        where = f"Epoch[{at.epoch}] Batch [{at.batch}/{batches}]"
        shown = ", ".join(f"{k.removeprefix('Train-')} {v:.6f}" for k, v in values.items() if k.startswith("Train-"))
        lr = self.optimizer.param_groups[-1]["lr"]
        log.info("%s %.1f samples/s, ETA %s: %s, lr %.3g", where, speed, format_duration(eta), shown, lr)
        self._progress.start(at.step)

    def _training_values(self) -> dict[str, float]:
        """Metrics of the epoch so far, the last loss, the gradient norm and the learning rates."""
        values = {f"Train-{k}": v for k, v in self.metrics.compute().items()}
        values["Train-Loss"] = float(self._loss) / self.settings.accumulate
        if self._grad_norm is not None and self.settings.clip_norm > 0:
            values["grad-para/Total-Norm"] = float(self._grad_norm)
        for i, group in enumerate(self.optimizer.param_groups):
            values[f"Initial-LR/Group_{i}"], values[f"LR/Group_{i}"] = group["initial_lr"], group["lr"]
        return values

    # ------------------------------------------------------------------------------------------ stopping and saving

    def _stop_if_asked(self) -> None:
        """Stop at the same batch on all ranks. Every rank must call it: the cause may be known to only some."""
        lost = int(signal.SIGCHLD) if self.loader.lost else 0
        signum = distributed.all_reduce_max(self._signals.signum or lost)
        if signum:
            self._stop(signum)

    def _stop(self, signum: int) -> NoReturn:
        """Save the position and raise Stopped, or WorkerError for SIGCHLD. Every rank must call it."""
        self._save_position()
        if signum == signal.SIGCHLD:
            texts = distributed.gather_objects(self.loader.lost) or []
            raise WorkerError(distributed.broadcast_object(next(filter(None, texts), "")))
        raise Stopped(signum)

    def _save_position(self) -> None:
        """Save the position at a stop. Every rank must call it."""
        path = checkpoint.latest_path(self.directory, self.prefix)
        self.save(path)
        at = self.position
        self._check_saved()
        log.warning("stopped at epoch %d batch %d; the same command goes on from %s", at.epoch, at.batch, path)

    def save(self, path: Path, also: Path | None = None, without_run: bool = False) -> None:
        """Write a checkpoint on rank 0. Every rank must call it.

        also: of the best checkpoint, a second name for it or a file of weights. without_run: leave out the run.

        A full disk is logged as an error and does not end the run, which saves again later. Older checkpoints stay.
        """
        state = self.state_dict()
        if not distributed.is_main():
            return
        latest = checkpoint.latest_path(self.directory, self.prefix)
        previous = checkpoint.previous_path(self.directory, self.prefix)
        try:
            content = checkpoint.without_run(state) if without_run else state
            checkpoint.save_file(path, content, previous if path == latest else None)
            if also is not None and self.settings.best_weights:
                checkpoint.save_file(also, checkpoint.without_run(state))
            elif also is not None:
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

"""The training loop of all tasks: updates, validation, checkpoints."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor
from tqdm import tqdm

from common import distributed
from common.data.copies import DeviceCopies
from common.data.sample import Batch, ModelOutput
from common.errors import CheckpointError, WorkerError
from common.log import RunWriter
from common.train.adamw import AdamW
from common.train.evaluator import Interrupted
from common.train.late import LateValues
from common.train.optim import apply_lr, divide_gradients, measure_clipping
from common.train.progress import Progress, format_duration
from common.train.schedules import PlateauSchedule
from common.train.signals import Stopped, StopSignals
from common.train.trainer_state import TrainerState
from common.weights import checkpoint

log = logging.getLogger(__name__)

OVERFLOWS = 20  # in a row at a loss scale that cannot fall: a run that would train nothing ends


class _Undecided(NamedTuple):
    """An update that the device has, and of which the host does not know yet whether it was finite.

    values: 1 where it was not, and the number of a signal, over all ranks. cycle: its losses.
    """

    values: LateValues
    place: str
    cycle: list[dict[str, Tensor]]
    grad_norm: Tensor | None


@dataclass(kw_only=True)
class Trainer(TrainerState):
    """Trains `model` on `loader`.

    directory, prefix: checkpoints are `<directory>/<prefix>-%04d.model`.
    validate: takes a function that returns whether to stop, and returns metrics by name; None for no validation.
    read_late: with TRAIN.NONFINITE stop, the device itself leaves out an update that is not finite, and the host learns
        of it, and of signals to other ranks, one update later instead of waiting. Not in fp16, whose scaler waits.
    """

    directory: Path
    prefix: str
    validate: Callable[[Callable[[], bool]], dict[str, float]] | None = None
    writer: RunWriter | None = None
    read_late: bool = False

    def __post_init__(self) -> None:
        self._signals = StopSignals()
        self._to_device = DeviceCopies(self.device)
        self._unsaved: OSError | None = None  # why the last checkpoint could not be written
        self._cycle: list[dict[str, Tensor]] = []  # losses of the micro-batches since the last update
        self._loss = torch.tensor(math.nan)
        self._grad_norm: Tensor | None = None
        self._overflows = 0  # in a row, at a loss scale that cannot fall
        self._undecided: _Undecided | None = None  # the last update, until the host knows whether it was finite
        self._signal_of_any_rank = 0  # as of the last update that the host knows
        self._progress = Progress()
        self.position.epoch = max(self.position.epoch, self.settings.begin_epoch)

    # ------------------------------------------------------------------------------------------ the loop

    def fit(self) -> None:
        """Train to the end epoch.

        Raises Stopped after a signal of STOPS, WorkerError for a loader worker that ended, FloatingPointError for a
        non-finite loss or gradients that overflow fp16 in OVERFLOWS updates in a row, CheckpointError where the last
        checkpoint could not be written.
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
            distributed.doing(f"epoch {at.epoch} batch {at.batch}: reading")
            for batch in self.loader.epoch(at.epoch, at.batch):
                distributed.doing(f"epoch {at.epoch} batch {at.batch}: forward and backward")
                self._train_batch(batch)
                bar.update()
                if self._enough():
                    break
                distributed.doing(f"epoch {at.epoch} batch {at.batch}: reading")
        self._decide()

    def _train_batch(self, batch: Batch) -> None:
        """Forward, backward and what is due after this batch: an update, a report, a checkpoint, a stop."""
        at, s = self.position, self.settings
        updates = (at.step + 1) % s.accumulate == 0
        last = at.batch + 1 == len(self.loader)
        # The checkpoint of an epoch holds the gradients that wait for the next one. All ranks load them from it, so
        # they must be averaged at the end of an epoch too.
        exchange = updates or last
        with distributed.gradient_exchange(self.model, exchange):
            self._micro_step(self._to_device(batch))
        at.batch += 1
        at.step += 1
        updated = updates and self._update()
        if (at.batch - 1) % s.log_every == 0 or last:
            self._report()
        if updated and s.save_updates and at.updates % s.save_updates == 0:
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

    def _update(self) -> bool:
        """One optimizer step. Update k, counted from 1, uses the learning rate of schedule(k).

        Returns False for an update that is left out. It is not counted, so the schedule does not move.
        """
        at = self.position
        apply_lr(self.optimizer, self.schedule(at.updates + 1))
        self.precision.unscale(self.optimizer)
        limit = self.settings.clip_norm if self.settings.clip_norm > 0 else math.inf
        self._grad_norm, divisor = measure_clipping(self.module.parameters(), limit)
        distributed.doing(f"{self._place()}: optimizer step")
        done = True
        if self._reads_late():
            self._update_late(divisor)
        elif self._any_rank_not_finite():
            done = False
            self._not_finite()
        elif self._step(divisor):
            self._overflows = 0
        else:
            done = False
            self._overflowed()
        if done:
            distributed.started_up()
        at.updates += done
        self.optimizer.zero_grad(set_to_none=True)
        self._cycle.clear()
        return done

    def _any_rank_not_finite(self) -> bool:
        """Whether a loss or gradient of this update is not finite on a rank. Waits for the device."""
        with distributed.exchanging():  # gradients of a GPU may still be on their way
            non_finite = bool(self._non_finite())
        return distributed.any_rank(non_finite)

    def _update_late(self, divisor: Tensor | None) -> None:
        """An optimizer step that the device itself leaves out where it is not finite. The host reads that later."""
        self._decide()
        non_finite = self._non_finite()
        signum = torch.full_like(non_finite, self._asked_to_stop())
        values = distributed.all_reduce_max_later(torch.stack([non_finite, signum]))
        self._step(divisor, found_inf=values[0])
        self._undecided = _Undecided(LateValues(values), self._place(), [*self._cycle], self._grad_norm)

    def _step(self, divisor: Tensor | None, found_inf: Tensor | None = None) -> bool:
        """The optimizer step on the gradients divided by `divisor`, which clips them; none where found_inf is 1.

        Returns False where fp16 overflowed.
        """
        if isinstance(self.optimizer, AdamW):
            # One pass over all gradients less.
            return self.precision.step(self.optimizer, grad_scale=divisor, found_inf=found_inf)
        if divisor is not None:
            divide_gradients(self.module.parameters(), divisor)
        if found_inf is not None:
            self.optimizer.found_inf = found_inf  # type: ignore[attr-defined]  # where SGD reads it
        return self.precision.step(self.optimizer)

    def _reads_late(self) -> bool:
        """Whether the device itself can leave out an update that is not finite, after which the run ends."""
        fused = isinstance(self.optimizer, AdamW) and self.optimizer.fused
        fused = fused or (isinstance(self.optimizer, torch.optim.SGD) and bool(self.optimizer.defaults["fused"]))
        return self.read_late and self.settings.nonfinite == "stop" and self.precision.scaler is None and fused

    def _decide(self) -> None:
        """Learn whether the last update was finite. Raises FloatingPointError where it was not."""
        if self._undecided is None:
            return
        update, self._undecided = self._undecided, None
        with distributed.exchanging():
            non_finite, signum = update.values.read()
        self._signal_of_any_rank = int(signum)
        if non_finite:
            raise _stopping(_description(update.place, update.cycle, update.grad_norm))

    def _non_finite(self) -> Tensor:
        """1 unless all losses since the last update are finite, and the gradient norm unless a loss scale handles it.

        float32 scalar on the device.
        """
        values = [losses["loss"] for losses in self._cycle]
        if self.precision.scaler is None and self._grad_norm is not None:
            values.append(self._grad_norm)
        return 1.0 - torch.stack([v.float().reshape(()) for v in values]).isfinite().all().float()

    def _not_finite(self) -> None:
        """Log an update whose loss or gradient is not finite, and leave it out, or raise FloatingPointError."""
        text = _description(self._place(), self._cycle, self._grad_norm)
        if self.settings.nonfinite == "stop":
            raise _stopping(text)
        self.precision.skip()
        self._left_out(text)

    def _overflowed(self) -> None:
        """Log an update whose fp16 gradients overflowed. Raises FloatingPointError where a smaller scale is no way out.

        All ranks have the same gradients, so they agree.
        """
        text = f"{self._place()}: the fp16 gradients overflowed"
        if self.precision.at_lowest_scale():
            self._overflows += 1
            text += f", {self._overflows} in a row at the loss scale {self.precision.scale():g}, which cannot fall"
        self._left_out(text)
        if self.settings.nonfinite == "stop" and self._overflows >= OVERFLOWS:
            raise FloatingPointError(
                f"{text}. Nothing is trained: use TRAIN.PRECISION bf16 or fp32, or another TRAIN.FP16_LOSS_SCALE"
            )

    def _place(self) -> str:
        """Epoch, batch and number of the update that is being made."""
        at = self.position
        return f"epoch {at.epoch} batch {at.batch - 1}, update {at.updates + 1}"

    def _left_out(self, text: str) -> None:
        self.position.skipped += 1
        log.warning("%s; update left out, %d so far", text, self.position.skipped)

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
        self._decide()
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

    def _asked_to_stop(self) -> int:
        """The signal that this rank got, SIGCHLD for a lost loader worker, or 0."""
        return self._signals.signum or (int(signal.SIGCHLD) if self.loader.lost else 0)

    def _stop_if_asked(self) -> None:
        """Stop at the same batch on all ranks. Every rank must call it: the cause may be known to only some."""
        late = self._reads_late() and distributed.is_distributed()
        signum = self._signal_of_any_rank if late else distributed.all_reduce_max(self._asked_to_stop())
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
        self._decide()
        distributed.doing(f"writing {path}")
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


def _description(place: str, cycle: Sequence[dict[str, Tensor]], grad_norm: Tensor | None) -> str:
    """What is not finite, with the losses of the micro-batches. Waits for the device."""
    losses = [{k: round(float(v.mean()), 6) for k, v in one.items()} for one in cycle]
    norm = "" if grad_norm is None else f", gradient norm {float(grad_norm)}"
    return f"{place}: loss or gradient not finite: {losses}{norm}"


def _stopping(text: str) -> FloatingPointError:
    return FloatingPointError(text + ". Set TRAIN.NONFINITE skip to leave such updates out")

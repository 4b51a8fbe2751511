"""The numbers that a run derives from its config and from the number of its processes."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import Config
from common.errors import ConfigError


@dataclass(frozen=True)
class RunPlan:
    """Batch size, learning rate and number of updates of a run.

    replicas: number of devices that share an update. With several processes this is their number. A single process
        counts the entries of GPUS and trains on the micro-batches of these devices one after the other.
    processes: number of processes. samples: per replica and micro-batch, summed over datasets.
    accumulation: micro-batches of a replica for an update. lr: TRAIN.LR, which is per sample.
    batches_per_epoch: of one process.
    """

    replicas: int
    processes: int
    samples: int
    accumulation: int
    lr: float
    batches_per_epoch: int
    epochs: int

    @classmethod
    def from_config(cls, cfg: Config, processes: int, batches_per_epoch: int) -> RunPlan:
        """processes: `distributed.world_size()`. batches_per_epoch: length of one process's training loader."""
        images = cfg.TRAIN.BATCH_IMAGES
        named = len([gpu for gpu in str(cfg.GPUS).split(",") if gpu.strip()])
        return cls(
            replicas=processes if processes > 1 else max(1, named),
            processes=processes,
            samples=images if isinstance(images, int) else sum(images),
            accumulation=max(1, cfg.TRAIN.GRAD_ACCUMULATE_STEPS),
            lr=cfg.TRAIN.LR,
            batches_per_epoch=batches_per_epoch,
            epochs=cfg.TRAIN.END_EPOCH,
        )

    def check(self) -> None:
        """Raises ConfigError for a run without an update."""
        if self.total_updates < 1:
            raise ConfigError(
                f"TRAIN.GRAD_ACCUMULATE_STEPS: an update takes {self.micro_batches} batches, and the {self.epochs} "
                f"epochs of this run have {self.epochs * self.batches_per_epoch}: nothing would be trained"
            )

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one process in an optimizer step."""
        return self.accumulation * self.replicas // self.processes

    @property
    def effective_batch(self) -> int:
        """Samples of all processes in an optimizer step."""
        return self.replicas * self.samples * self.accumulation

    @property
    def base_lr(self) -> float:
        """Learning rate of an update: TRAIN.LR times the effective batch."""
        return self.lr * self.effective_batch

    @property
    def total_updates(self) -> int:
        return self.updates_before(self.epochs)

    def updates_before(self, epoch: float) -> int:
        """Optimizer steps done when `epoch` begins."""
        return int(epoch * self.batches_per_epoch / self.micro_batches)

    def describe(self) -> str:
        """One line for the log."""
        line = (
            f"{self.replicas} replicas x {self.samples} samples x {self.accumulation} accumulated = "
            f"effective batch {self.effective_batch}; learning rate {self.lr:g} x {self.effective_batch} = "
            f"{self.base_lr:g}; {self.epochs} epochs x {self.batches_per_epoch} batches = {self.total_updates} updates"
        )
        if self.replicas > self.processes:
            line += (
                f". GPUS names {self.replicas} devices and this is one process on one device: it takes "
                f"{self.micro_batches} micro-batches for an update, which is the same optimisation"
            )
        return line

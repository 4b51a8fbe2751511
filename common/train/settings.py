"""The numbers that steer the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from common.config import Config
from common.train.plan import RunPlan


@dataclass(frozen=True)
class TrainerSettings:
    """Numbers of a run, with their config keys in brackets.

    accumulate: micro-batches per update.
    clip_norm: largest gradient norm; no clipping when <= 0 [TRAIN.CLIP_GRAD_NORM].
    nonfinite: "stop" or "skip" [TRAIN.NONFINITE].
    log_every: in batches [LOG_FREQUENT]. validate_every, save_every: in epochs [VAL_FREQUENT, CHECKPOINT_FREQUENT].
    save_updates: in updates, 0 for never [CHECKPOINT_STEPS].
    keep_epochs: newest epochs whose checkpoints are kept, 0 for all [CHECKPOINT_KEEP].
    best_weights: the best checkpoint has no optimizer and no position [CHECKPOINT_BEST_WEIGHTS].
    max_updates: the run ends after this many updates, 0 for no limit [TRAIN.MAX_STEPS].
    main_metric: name of the validation metric that chooses the best checkpoint.
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
    keep_epochs: int = 0
    best_weights: bool = False
    max_updates: int = 0
    main_metric: str = ""

    @classmethod
    def from_config(cls, cfg: Config, plan: RunPlan, main_metric: str) -> TrainerSettings:
        return cls(
            begin_epoch=cfg.TRAIN.BEGIN_EPOCH,
            end_epoch=cfg.TRAIN.END_EPOCH,
            accumulate=plan.micro_batches,
            clip_norm=cfg.TRAIN.CLIP_GRAD_NORM,
            nonfinite=cfg.TRAIN.NONFINITE,
            log_every=cfg.LOG_FREQUENT,
            validate_every=cfg.VAL_FREQUENT,
            save_every=cfg.CHECKPOINT_FREQUENT,
            save_updates=cfg.CHECKPOINT_STEPS,
            keep_epochs=cfg.CHECKPOINT_KEEP,
            best_weights=cfg.CHECKPOINT_BEST_WEIGHTS,
            max_updates=cfg.TRAIN.MAX_STEPS,
            main_metric=main_metric,
        )

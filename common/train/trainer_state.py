"""What a checkpoint holds of a run, and the exact way back into it."""

from __future__ import annotations

import copy
import logging
import operator
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from common import distributed
from common.data.loader import Loader
from common.errors import CheckpointError
from common.metrics import MetricGroup
from common.precision import Precision
from common.train.optim import apply_lr
from common.train.schedules import PlateauSchedule, Schedule
from common.train.settings import TrainerSettings
from common.weights import checkpoint

log = logging.getLogger(__name__)


@dataclass
class Position:
    """How far a run is.

    epoch, batch: the next batch to train on. step, updates: batches and optimizer steps of the whole run.
    skipped: updates left out because a loss or gradient was not finite; they are no updates.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    updates: int = 0
    skipped: int = 0


@dataclass(kw_only=True)
class TrainerState:
    """The parts of a run that training changes and a checkpoint keeps.

    model: the module that is called, in a wrapper where there are several processes. device: that of this process.
    schedule: update number -> learning rate factor. config, task: stored with the weights, so that one file is enough
    to rebuild the model.
    made_with, text_files: stored too, versions and machine, and digests of the vocabulary and other text files.
    best_epoch, best_value: of the validation with the largest main metric; -1 before the first.
    """

    model: nn.Module
    device: torch.device
    optimizer: Optimizer
    schedule: Schedule
    precision: Precision
    loader: Loader
    metrics: MetricGroup
    settings: TrainerSettings
    config: dict[str, Any] = field(default_factory=dict)
    task: str = ""
    made_with: dict[str, Any] = field(default_factory=dict)
    text_files: dict[str, Any] = field(default_factory=dict)
    position: Position = field(default_factory=Position)
    best_epoch: int = -1
    best_value: float = -1.0

    @property
    def module(self) -> nn.Module:
        """The model without the wrapper of several processes."""
        return distributed.unwrap(self.model)

    def state_dict(self) -> dict[str, Any]:
        """The content of a checkpoint. Every rank must call it; that of rank 0 is complete."""
        return {
            "state_dict": distributed.whole_state(self.module),
            "optimizer": distributed.whole(self.optimizer.state_dict()),
            "validation_monitor": {"best_epoch": self.best_epoch, "best_val": self.best_value},
            "run": {
                "position": vars(self.position).copy(),
                "batches_per_epoch": len(self.loader),
                "base_seed": self.loader.base_seed,
                "accumulate": self.settings.accumulate,
                "precision": self.precision.state_dict(),
                "plateau": self.schedule.state_dict() if isinstance(self.schedule, PlateauSchedule) else None,
                "metrics": self.metrics.state_dict(),
                "gradients": self._open_gradients(),
                "rng": distributed.gather_objects(rng_state(self.device)),  # one entry for each rank
            },
            "config": self.config,
            "task": self.task,
            "made_with": self.made_with,
            "text_files": self.text_files,
        }

    def _open_gradients(self) -> dict[str, torch.Tensor]:
        """Gradients by parameter name that the next update will use; empty right after an update."""
        if self.position.step % self.settings.accumulate == 0:
            return {}
        grads = {name: p.grad for name, p in self.module.named_parameters() if p.grad is not None}
        return distributed.whole(grads)

    def load_state_dict(self, state: dict[str, Any], source: str, epoch: int | None = None) -> None:
        """Go on where a checkpoint was written.

        source: the file, for errors and the log. epoch: of the file's name, for files of the original, which hold no
        position. The loader takes over the seed of the checkpoint.
        Raises CheckpointError when weights or optimizer do not fit, or when the checkpoint stands inside an epoch whose
        batches are not the same now.
        """
        own, saved = self.module.state_dict(), checkpoint.strip_module(state["state_dict"])
        shares = {key: distributed.share_like(value, own[key]) if key in own else value for key, value in saved.items()}
        checkpoint.load_model(self.module, shares, source)
        self._load_optimizer(state, source)
        monitor = state.get("validation_monitor") or {}
        self.best_epoch, self.best_value = int(monitor.get("best_epoch", -1)), float(monitor.get("best_val", -1.0))
        if "run" in state:
            self._load_run(state["run"], source, (state.get("made_with") or {}).get("device", ""))
        elif epoch is not None:
            step = (epoch + 1) * len(self.loader)
            self.position = Position(epoch + 1, 0, step, step // self.settings.accumulate)
        apply_lr(self.optimizer, self.schedule(self.position.updates))

    def check_state(self, state: dict[str, Any], source: str) -> None:
        """Raises CheckpointError where a checkpoint is damaged inside, before `load_state_dict` changes the run.

        Weights that do not fit the model are no damage: they pass, and `load_state_dict` names them.
        """
        own = {name: p.shape for name, p in self.module.state_dict().items()}
        try:
            stored = checkpoint.strip_module(state["state_dict"])
            if {name: value.shape for name, value in stored.items()} != own:
                return
            if "optimizer" in state:
                self._check_optimizer(state["optimizer"])
            if "run" in state:
                self._check_run(state["run"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise CheckpointError(f"{source}: damaged inside ({why})") from error

    def _check_optimizer(self, stored: dict[str, Any]) -> None:
        """Raises ValueError for a state of other shapes than its parameter's, and other errors for other containers."""
        indices = [index for group in stored["param_groups"] for index in group["params"]]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if len(indices) != len(parameters):
            return  # of another config; `load_state_dict` names it
        for index, parameter in zip(indices, parameters, strict=True):
            for name, value in stored["state"].get(index, {}).items():
                single = name == "step" or (isinstance(value, torch.Tensor) and value.dim() == 0)
                if not single and value is not None and value.shape != parameter.shape:
                    raise ValueError(f"optimizer {name} of parameter {index} is {tuple(value.shape)}")
                if single:
                    float(value)

    def _check_run(self, run: dict[str, Any]) -> None:
        """Load into copies."""
        for number in vars(Position(**run["position"])).values():
            operator.index(number)
        for name in ("batches_per_epoch", "accumulate", "base_seed"):
            operator.index(run[name])
        copy.deepcopy(self.metrics).load_state_dict(run["metrics"])
        copy.deepcopy(self.precision).load_state_dict(run["precision"])
        if isinstance(self.schedule, PlateauSchedule) and run["plateau"]:
            copy.deepcopy(self.schedule).load_state_dict(run["plateau"])
        parameters = dict(self.module.named_parameters())
        for name, grad in run["gradients"].items():
            if grad.shape != parameters[name].shape:
                raise ValueError(f"gradient of {name} is {tuple(grad.shape)}")
        for state in run["rng"]:
            version, numbers, gauss = state["python"]
            random.Random().setstate((version, tuple(numbers), gauss))
            kind, keys, pos, has_gauss, cached = state["numpy"]
            np.random.RandomState().set_state((kind, keys.numpy().astype(np.uint32), pos, has_gauss, cached))
            torch.Generator().set_state(state["torch"])

    def _load_optimizer(self, state: dict[str, Any], source: str) -> None:
        if "optimizer" not in state:
            raise CheckpointError(f"{source} has no optimizer to go on with: give it as PARTIAL_PRETRAIN")
        initial = [group["initial_lr"] for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(self._shares(state["optimizer"]))
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"{source}: its optimizer is not the configured one ({error}); TRAIN.OPTIMIZER and LR_MULT must stay"
            ) from error
        for group, lr in zip(self.optimizer.param_groups, initial, strict=True):
            group["initial_lr"] = lr  # the learning rate of the config, not that of the file

    def _shares(self, saved: dict[str, Any]) -> dict[str, Any]:
        """A state dict of an optimizer with its tensors sharded as their parameters are."""
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        own = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state = dict(saved["state"])
        for number, parameter in zip(numbers, own, strict=False):  # the optimizer itself checks the lengths
            state[number] = {
                name: distributed.share_like(value, parameter)
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape
                else value
                for name, value in state.get(number, {}).items()
            }
        return {**saved, "state": {number: entry for number, entry in state.items() if entry}}

    def _load_run(self, run: dict[str, Any], source: str, made_on: str) -> None:
        """made_on: the device of rank 0 of the run that wrote the checkpoint, "" where the file does not name it."""
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
            grad = distributed.share_like(grad, parameters[name])
            parameters[name].grad = grad.to(parameters[name].device)
        if len(run["rng"]) == distributed.world_size():
            old = distributed.local_rank() if distributed.is_distributed() else int(made_on.partition(":")[2] or 0)
            set_rng_state(run["rng"][distributed.rank()], self.device, old)
        else:
            log.warning("%s is of %d processes: random numbers start anew", source, len(run["rng"]))


def rng_state(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state of every generator a model on `device` may draw from, in types that load weights-only."""
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
    if torch.device(device).type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Any], device: torch.device | str = "cpu", old_index: int = 0) -> None:
    """Restores what `rng_state` returned; the number of the GPU may have changed.

    old_index: number of the GPU of the process that saved an old file, whose state has a list of the
    generators of all GPUs. A number that the list lacks leaves the generator as it is and logs a warning.
    """
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, pos, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), pos, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    saved = state.get("cuda")
    if saved is None or torch.device(device).type != "cuda":
        return
    if isinstance(saved, list):
        if old_index >= len(saved):
            log.warning("the checkpoint has no random state of GPU %d: its random numbers start anew", old_index)
            return
        saved = saved[old_index]
    torch.cuda.set_rng_state(saved, device)

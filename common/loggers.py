"""Optional loggers of scalars beside TensorBoard: Weights & Biases and MLflow, each through its own package."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from common.errors import ConfigError


class ScalarLogger(Protocol):
    """What a run needs of a logger."""

    def log(self, kind: str, step: int, scalars: Mapping[str, float]) -> None:
        """kind: "train", where a step is a batch of the run, or "val", where it is an epoch."""

    def close(self) -> None: ...


class WandbLogger:
    """A run of Weights & Biases in <folder>/wandb, offline unless WANDB_MODE names another mode.

    `wandb sync` uploads an offline run. Training counts batches and validation counts epochs, so each kind has an axis
    of its own, <kind>/step.
    """

    def __init__(self, folder: Path, project: str, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(project=project, name=name, dir=str(folder), config=dict(config), mode=mode)
        self._known: set[str] = set()

    def log(self, kind: str, step: int, scalars: Mapping[str, float]) -> None:
        axis = f"{kind}/step"
        for name in scalars.keys() - self._known:
            self._run.define_metric(name, step_metric=axis)
        self._known |= scalars.keys()
        self._run.log({**scalars, axis: step})

    def close(self) -> None:
        self._run.finish()


class MlflowLogger:
    """A run of MLflow in the file store <folder>/mlruns, or where MLFLOW_TRACKING_URI points."""

    def __init__(self, folder: Path, project: str, name: str, config: Mapping[str, Any]) -> None:
        import mlflow

        # Newer versions refuse a file store that is not asked for.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        where = os.environ.get("MLFLOW_TRACKING_URI") or (folder.resolve() / "mlruns").as_uri()
        self._client = mlflow.MlflowClient(tracking_uri=where)
        experiment = self._client.get_experiment_by_name(project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(project)
        self._id = self._client.create_run(number, run_name=name).info.run_id
        self._client.log_dict(self._id, dict(config), "config.json")

    def log(self, kind: str, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


LOGGERS: dict[str, type[WandbLogger] | type[MlflowLogger]] = {"wandb": WandbLogger, "mlflow": MlflowLogger}
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}


def check_loggers(names: Sequence[str]) -> None:
    """Raises ConfigError for a logger whose package is not installed. names: values of TRAIN.LOGGERS."""
    for name in names:
        try:
            if name == "wandb":
                import wandb  # noqa: F401
            else:
                import mlflow  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"TRAIN.LOGGERS: {name} is not installed: pip install {PACKAGES[name]}") from error


def build_loggers(
    names: Sequence[str], folder: Path, project: str, name: str, config: Mapping[str, Any]
) -> list[ScalarLogger]:
    """names: values of TRAIN.LOGGERS. folder: of the run. name: of the run in the project. config: complete."""
    check_loggers(names)
    return [LOGGERS[logger](folder, project, name, config) for logger in names]

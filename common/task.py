"""What a task is: the parts that the shared command line, trainer and evaluator work with."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import Config
from common.errors import ConfigError

if TYPE_CHECKING:  # heavy imports would slow down `--help`
    from torch import nn

    from common.data.dataset import TaskDataset
    from common.data.sample import Batch, ModelOutput
    from common.predict.predictor import Predictor
    from common.train.metrics import MetricGroup

Record = dict[str, Any]


def _no_results(*args: Any) -> Any:
    raise ConfigError("this task has no test results to write")


@dataclass(frozen=True)
class Task:
    """One task. Functions that take `cfg` get the complete, frozen config.

    name: the folder of the task, and of its keys in common/config/keys.py.
    modules: value of the key MODULE -> builder of the module (random weights, no file read).
    build_dataset: (cfg, "train" | "val" | "test") -> dataset, or several that are read in step, the first one the
    master. Datasets of "test" carry no targets.
    build_metrics: (cfg, training) -> metrics.
    main_metric: (cfg) -> name of the one that chooses the best checkpoint; larger is better.
    has_results: whether a test run writes a file; without one the next three are not given.
    to_records: one JSON-able dict with an "id" for every sample of a batch, from the model's output.
    write_results: (records, dataset, path) -> the result file in the benchmark's format, records in dataset order.
    result_name: (cfg, stem) -> file name of the results. result_stem: (cfg, stem of the YAML) -> its default stem.
    summary: (records, dataset) -> what to tell about the results beside their path; empty for nothing.
    adapt_pretrained: (cfg) -> the task's own change of a renamed checkpoint before PARTIAL_PRETRAIN loads it, or None.
    after_loading: (model, dataset, cfg), once at the start of training, after all weights were loaded.
    predictor: what answers for images of users.
    loss_scale_range: smallest and largest dynamic fp16 loss scale (spec 03 §6).
    """

    name: str
    modules: dict[str, Callable[[Any], nn.Module]]
    build_dataset: Callable[[Config, str], TaskDataset | list[TaskDataset]]
    build_metrics: Callable[[Any, bool], MetricGroup]
    main_metric: Callable[[Any], str]
    has_results: bool = True
    to_records: Callable[[ModelOutput, Batch, Any], list[Record]] = _no_results
    write_results: Callable[[Sequence[Record], Any, Path], None] = _no_results
    result_name: Callable[[Any, str], str] = _no_results
    result_stem: Callable[[Any, str], str] = lambda cfg, yaml_stem: yaml_stem
    summary: Callable[[Sequence[Record], Any], str] = lambda records, dataset: ""
    adapt_pretrained: Callable[[Any], Callable[[dict[str, Any]], dict[str, Any]] | None] = lambda cfg: None
    after_loading: Callable[[Any, Any, Any], None] = lambda model, dataset, cfg: None
    predictor: type[Predictor] | None = None
    loss_scale_range: tuple[float, float | None] = (1.0, None)

    def build_model(self, cfg: Config) -> nn.Module:
        """The module that MODULE names, with random weights.

        Raises ConfigError for an unknown MODULE, and what the builder raises. A builder raises ConfigError for settings
        that contradict each other. Any other error, as a ValueError of PyTorch, is a fault of the program.
        """
        if cfg.MODULE not in self.modules:
            raise ConfigError(f"MODULE {cfg.MODULE!r}: {self.name} has {', '.join(self.modules)}")
        return self.modules[cfg.MODULE](cfg)


def load_task(name: str) -> Task:
    """The task of the folder `name`. Raises ValueError when there is none."""
    try:
        return importlib.import_module(f"{name}.task").TASK
    except ModuleNotFoundError as error:
        if error.name not in (name, f"{name}.task"):
            raise
        raise ValueError(f"task {name!r}: there is no {name}/task.py") from error

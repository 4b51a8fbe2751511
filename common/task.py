"""Task: the parts that the shared command line, trainer and evaluator work with.

A task is a folder `<name>/` with `task.py` (TASK), `keys.py` (KEYS) and `needs.py` (needs). docs/add_a_task.md builds
one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import Config
from common.config.table import from_task
from common.errors import ConfigError

if TYPE_CHECKING:  # heavy imports would slow down `--help`
    from torch import nn

    from common.data.dataset import TaskDataset
    from common.data.sample import Batch, ModelOutput
    from common.data.synthetic import MadeUp
    from common.metrics import MetricGroup

Record = dict[str, Any]


def _no_results(*args: Any) -> Any:
    raise ConfigError("this task has no test results to write")


def _text_and_regions() -> MadeUp:
    from common.data.synthetic import MadeUp

    return MadeUp()


@dataclass(frozen=True)
class DeepCheck:
    """A look into the data of a config for `python -m common.doctor --deep`.

    name: title of its line. run: () -> (what was seen, the problems, one line each).
    """

    name: str
    run: Callable[[], tuple[str, list[str]]]


@dataclass(frozen=True)
class Task:
    """One task. Functions that take `cfg` receive the complete, frozen config.

    name: the folder of the task.
    modules: value of the key MODULE -> builder of the module (random weights, no file read).
    build_dataset: (cfg, "train" | "val" | "test") -> dataset, or several that are read in step, the master first.
    Datasets of "test" carry no targets.
    build_metrics: (cfg, training) -> metrics.
    main_metric: (cfg) -> name of the metric that chooses the best checkpoint; larger is better.
    has_results: whether a test run writes a file. A task without results leaves out the next three.
    to_records: one JSON-able dict with an "id" for every sample of a batch, from the model's output.
    write_results: (records, dataset, path) -> the result file in the benchmark's format, records in dataset order.
    result_name: (cfg, stem) -> file name of the results. result_stem: (cfg, stem of the YAML) -> its default stem.
    summary: (records, dataset) -> text to print before the path of the results; may be empty.
    adapt_pretrained: (cfg) -> the task's own change of a renamed checkpoint before PARTIAL_PRETRAIN loads it, or None.
    after_loading: (model, dataset, cfg) -> None, once at the start of training, after all weights were loaded.
    predictor: the subclass of common.predict.predictor.Predictor that answers for images of users.
    made_up: how made-up samples of the task look. The default has text and regions and no targets: enough for an
    export; a model report and a forecast of memory need targets.
    deep_checks: (cfg, number of records to open) -> what `common.doctor --deep` checks beside the samples.
    text_files: key of the config -> name, in a model folder, of a text file that the model needs beside the vocabulary,
    such as a list of answers: one entry a line.
    loss_scale_range: smallest and largest dynamic fp16 loss scale (original 3.9).
    """

    name: str
    modules: dict[str, Callable[[Config], nn.Module]]
    build_dataset: Callable[[Config, str], TaskDataset | list[TaskDataset]]
    build_metrics: Callable[[Config, bool], MetricGroup]
    main_metric: Callable[[Config], str]
    has_results: bool = True
    to_records: Callable[[ModelOutput, Batch, Any], list[Record]] = _no_results
    write_results: Callable[[Sequence[Record], Any, Path], None] = _no_results
    result_name: Callable[[Config, str], str] = _no_results
    result_stem: Callable[[Config, str], str] = lambda cfg, yaml_stem: yaml_stem
    summary: Callable[[Sequence[Record], Any], str] = lambda records, dataset: ""
    adapt_pretrained: Callable[[Config], Callable[[dict[str, Any]], dict[str, Any]] | None] = lambda cfg: None
    after_loading: Callable[[Any, Any, Config], None] = lambda model, dataset, cfg: None
    predictor: type[Any] | None = None
    made_up: MadeUp = field(default_factory=_text_and_regions)
    deep_checks: Callable[[Config, int], list[DeepCheck]] = lambda cfg, samples: []
    text_files: Mapping[str, str] = field(default_factory=dict)
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
    """Returns the task of the folder `name`. Raises ConfigError where there is none."""
    task = from_task(name, "task", "TASK")
    if not isinstance(task, Task):
        raise ConfigError(f"{name}/task.py: TASK is a {type(task).__name__}: expected a Task")
    return task

"""Made-up batches by the name of a task."""

from __future__ import annotations

from typing import Any

from common.config import Config
from common.data import synthetic
from common.data.sample import Batch
from common.task import load_task


def made_up_batch(task: str, cfg: Config, *args: Any, **sizes: Any) -> Batch:
    """`common.data.synthetic.made_up_batch` of the samples of a task."""
    return synthetic.made_up_batch(load_task(task).made_up, cfg, *args, **sizes)

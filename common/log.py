"""Where a run reports: console and log file, TensorBoard, and a JSON-lines file of all numbers. Rank 0 speaks."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from common import distributed

log = logging.getLogger(__name__)

FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"


def setup_logging(log_file: Path | None = None) -> None:
    """Console, and `log_file` when given, on rank 0; other ranks report warnings only. May be called again."""
    main = distributed.is_main()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file is not None and main:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(FORMAT, "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO if main else logging.WARNING, handlers=handlers, force=True)


class RunWriter:
    """Scalars of a run into TensorBoard and `metrics.jsonl`; does nothing on other ranks than 0.

    A resumed run appends to the JSON-lines file. What a full disk does not take is told once and missing.
    """

    def __init__(self, folder: Path, tensorboard_folder: Path | None = None) -> None:
        self._tensorboard = self._lines = None
        self._told = False
        if not distributed.is_main():
            return
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._tensorboard = SummaryWriter(str(tensorboard_folder or folder / "tensorboard_logs"))
        self._lines = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def write(self, kind: str, step: int, scalars: Mapping[str, float], **fields: Any) -> None:
        """One line {"kind", "step", "time", fields..., scalars...}; NaN becomes null. `step` counts batches."""
        if self._lines is None or self._tensorboard is None:
            return
        try:
            self._write(kind, step, scalars, fields)
        except OSError as error:
            if not self._told:
                log.error("numbers of the run could not be written: %s. The run goes on without them", error)
            self._told = True

    def _write(self, kind: str, step: int, scalars: Mapping[str, float], fields: Mapping[str, Any]) -> None:
        assert self._lines is not None and self._tensorboard is not None
        for name, value in scalars.items():
            if not math.isnan(value):
                self._tensorboard.add_scalar(name, value, step)
        numbers = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._lines.write(json.dumps({"kind": kind, "step": step, "time": time.time(), **fields, **numbers}) + "\n")
        self._lines.flush()

    def close(self) -> None:
        if self._lines is not None and self._tensorboard is not None:
            with suppress(OSError):  # told when it was written
                self._lines.close()
            with suppress(OSError):
                self._tensorboard.close()

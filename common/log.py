"""The log of a run on console and in a file, and its numbers in TensorBoard, a JSON-lines file and optional loggers.

Rank 0 writes.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from common import distributed
from common.loggers import ScalarLogger

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

log = logging.getLogger(__name__)

FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"


def setup_logging(log_file: Path | None = None) -> None:
    """Log to the console and to `log_file`. Ranks other than 0 log warnings to the console only.

    A second call replaces the first.
    """
    main = distributed.is_main()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file is not None and main:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(FORMAT, "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO if main else logging.WARNING, handlers=handlers, force=True)


class RunWriter:
    """Writes scalars of a run to TensorBoard and `metrics.jsonl`. Does nothing on ranks other than 0.

    folder: of metrics.jsonl, to which a resumed run appends. tensorboard_folder: default <folder>/tensorboard_logs.
    loggers: () -> further loggers, which get the scalars of TensorBoard; not called on ranks other than 0.
    A full disk is logged as an error once, and the numbers are lost. A further logger that fails is logged as an error,
    and the run goes on without it.
    """

    def __init__(
        self,
        folder: Path,
        tensorboard_folder: Path | None = None,
        loggers: Callable[[], Sequence[ScalarLogger]] = tuple,
    ) -> None:
        self._loggers: list[ScalarLogger] = []
        self._tensorboard: SummaryWriter | None = None
        self._lines: TextIO | None = None
        self._full = False
        if not distributed.is_main():
            return
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._tensorboard = SummaryWriter(str(tensorboard_folder or folder / "tensorboard_logs"))
        self._lines = open(folder / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._loggers = list(loggers())

    def write(self, kind: str, step: int, scalars: Mapping[str, float], **fields: float | str) -> None:
        """Write one line {"kind", "step", "time", fields..., scalars...}.

        step: the number on the x axis of TensorBoard, batches of the run for "train" and epochs for "val". Numbers that
        are not finite become null.
        """
        if self._lines is None or self._tensorboard is None:
            return
        points = {name: value for name, value in scalars.items() if not math.isnan(value)}
        for logger in [*self._loggers]:
            self._guarded(logger, partial(logger.log, kind, step, points))
        try:
            for name, value in points.items():
                self._tensorboard.add_scalar(name, value, step)
            numbers = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
            line = {"kind": kind, "step": step, "time": time.time(), **fields, **numbers}
            self._lines.write(json.dumps(line) + "\n")
            self._lines.flush()
        except OSError as error:
            if not self._full:
                log.error("numbers of the run could not be written: %s. The run goes on without them", error)
            self._full = True

    def close(self) -> None:
        if self._lines is not None and self._tensorboard is not None:
            with suppress(OSError):  # logged when it was written
                self._lines.close()
            with suppress(OSError):
                self._tensorboard.close()
        for logger in [*self._loggers]:
            self._guarded(logger, logger.close)

    def _guarded(self, logger: ScalarLogger, call: Callable[[], None]) -> None:
        """Call a logger, and drop it if it fails: its errors are those of servers and of other packages."""
        try:
            call()
        except Exception as error:
            log.error("%s failed: %s. The run goes on without it", type(logger).__name__, error)
            self._loggers.remove(logger)

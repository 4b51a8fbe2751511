"""The log of a run on console and in a file, and its numbers in TensorBoard, a JSON-lines file and optional loggers.

Rank 0 writes.
"""

from __future__ import annotations

import json
import logging
import math
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from common import distributed
from common.files.append import AppendFile
from common.loggers import ScalarLogger

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
        handlers.append(LogFile(log_file))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(FORMAT, "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO if main else logging.WARNING, handlers=handlers, force=True)


class LogFile(logging.Handler):
    """Appends lines to a file. A line that a full disk does not take is lost; stderr has one line about it.

    Raises OSError where the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = AppendFile(path)
        self._full = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.append(f"{self.format(record)}\n".encode("utf-8", "backslashreplace"))
            self._full = False
        except OSError as error:
            if not self._full:
                with suppress(OSError):  # stderr may be a file on the same disk
                    print(f"log lines could not be written: {error}. The run goes on without them", file=sys.stderr)
            self._full = True
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._file.close()
        super().close()


class EventFile:
    """Scalars of TensorBoard in a new file of `folder`. Written by the caller's thread.

    The SummaryWriter of tensorboardX has a thread that ends at the first error, after which a full queue blocks the
    caller. Raises OSError where the file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = AppendFile(folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}")
        self._begun = False

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Append all scalars or none. Raises OSError if that fails."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        now = time.time()
        events = [] if self._begun else [Event(wall_time=now, file_version="brain.Event:2")]
        events += [Event(wall_time=now, step=step, summary=scalar(name, value)) for name, value in scalars.items()]
        self._file.append(b"".join(_record(event.SerializeToString()) for event in events))
        self._begun = True

    def close(self) -> None:
        self._file.close()


def _record(data: bytes) -> bytes:
    """A record of the TFRecord format: length, checksum of the length, data, checksum of the data."""
    from tensorboardX.record_writer import masked_crc32c

    header = struct.pack("<Q", len(data))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (header, data))
    return b"".join((header, next(checksums), data, next(checksums)))


class RunWriter:
    """Writes scalars of a run to TensorBoard and `metrics.jsonl`. Does nothing on ranks other than 0.

    folder: of metrics.jsonl, to which a resumed run appends. tensorboard_folder: default <folder>/tensorboard_logs.
    loggers: () -> further loggers, which get the scalars of TensorBoard; not called on ranks other than 0.
    Numbers that a full disk does not take are lost, which is logged as an error once, until it takes some again. A
    further logger that fails is logged as an error, and the run goes on without it.
    """

    def __init__(
        self,
        folder: Path,
        tensorboard_folder: Path | None = None,
        loggers: Callable[[], Sequence[ScalarLogger]] = tuple,
    ) -> None:
        self._loggers: list[ScalarLogger] = []
        self._tensorboard: EventFile | None = None
        self._lines: AppendFile | None = None
        self._full = False
        if not distributed.is_main():
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._tensorboard = EventFile(tensorboard_folder or folder / "tensorboard_logs")
        self._lines = AppendFile(folder / "metrics.jsonl")
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
        numbers = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        line = {"kind": kind, "step": step, "time": time.time(), **fields, **numbers}
        try:
            self._lines.append(f"{json.dumps(line)}\n".encode())
            self._tensorboard.write(points, step)
            self._full = False
        except OSError as error:
            if not self._full:
                log.error("numbers of the run could not be written: %s. The run goes on without them", error)
            self._full = True

    def close(self) -> None:
        if self._lines is not None and self._tensorboard is not None:
            self._lines.close()
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

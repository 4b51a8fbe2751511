"""The report of a failed process to torchrun, which prints that of the process that failed first."""

from __future__ import annotations

import json
import os
import time
import traceback
from pathlib import Path

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # names the file in which torchrun expects the report of a failed process


def report_failure(error: BaseException | None, line: str = "", of_group: bool = False) -> bool:
    """Write an error to the file that torchrun reads. Returns False, and writes nothing, without torchrun.

    The launcher prints the report of the process that failed first. line: printed instead of the traceback, for errors
    that the user can mend. of_group: the line names the processes it is about, and comes before all other reports.
    """
    if ERROR_FILE not in os.environ:
        return False
    stack = "" if line or error is None else "".join(traceback.format_exception(error))
    # The format of torch.distributed.elastic's ErrorHandler with a time of its own. ErrorHandler always writes a
    # traceback, and its timestamp in whole seconds does not tell which of two processes failed first.
    now = time.time()
    message = {"message": line or str(error), "extraInfo": {"py_callstack": stack, "timestamp": str(int(now))}}
    path = Path(os.environ[ERROR_FILE])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"message": message, "time": now, "of_group": of_group}), encoding="utf-8")
    return True

"""Command lines in tests: a script inside the test process, or in a process of its own.

Most commands run inside, because the import of torch takes seconds. The fixtures `command` and `error` are in
tests/conftest.py.
"""

from __future__ import annotations

import logging
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.log import LogFile
from tests.paths import ROOT

Command = Callable[..., int]
Error = Callable[..., str]


@contextmanager
def root_logger_restored() -> Iterator[None]:
    """Commands set up logging anew, on streams that pytest closes after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers and type(handler) in (logging.StreamHandler, LogFile):
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def run_script(monkeypatch: pytest.MonkeyPatch, script: str, *args: object) -> int:
    """Run `python SCRIPT ARGS` in this process. script: a path in the repository. Returns the exit status."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return end.value.code or 0


def error_line(err: str) -> str:
    """The message of the one error line on stderr, beside which only log lines of level I and W may stand."""
    lines = [line for line in err.splitlines() if not re.match(r"\S+ [IW] ", line)]
    assert len(lines) == 1 and re.match(r"\S+ E common\.cli: ", lines[0]), err
    return lines[0].partition("common.cli: ")[2]


def start(*words: object) -> subprocess.Popen[str]:
    """Start `python WORDS` in the repository, in a process group of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=environment,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def process(*words: object) -> tuple[int, str, str]:
    """Run `python WORDS` in the repository. Returns exit status, stdout and stderr."""
    run = start(*words)
    out, err = run.communicate(timeout=120)
    return run.returncode, out, err


def without_torch(script: str) -> str:
    """Python code that runs a script where torch cannot be imported: its module is None in sys.modules."""
    return f"import runpy, sys; sys.modules['torch'] = None; runpy.run_path({script!r}, run_name='__main__')"


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}

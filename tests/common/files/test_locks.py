"""Lock files among processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from common.files.locks import lock_holder, locked, take_lock
from tests.paths import ROOT

HOLD = """
import sys, time
from pathlib import Path
from common.files.locks import locked
with locked(Path(sys.argv[1])) as holder:
    print(holder or "mine", flush=True)
    time.sleep(600)
"""


def start(path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_second_process_sees_the_first_and_takes_over_when_it_is_killed(tmp_path, caplog):
    path = tmp_path / "deep" / "run.lock"
    first = start(path)
    assert first.stdout.readline() == "mine\n"
    try:
        with locked(path) as holder:
            assert f"pid {first.pid}" in holder and "host " in holder and "user " in holder
        assert path.is_file() and not caplog.text
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    with locked(path) as holder:
        assert holder == "" and f"pid {os.getpid()}" in lock_holder(path)
    assert "taken over from a process that is gone: user " in caplog.text and f"pid {first.pid}" in caplog.text
    assert not path.exists()
    first.stdout.close()


def test_a_lock_file_removed_by_its_holder_is_not_locked(tmp_path, monkeypatch):
    """Between the opening and the locking of the next one."""
    import fcntl

    path, original, removed = tmp_path / "a.lock", fcntl.flock, []

    def flock(file, kind):
        if not removed:
            path.unlink()
            removed.append(True)
        original(file, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = take_lock(path)
    assert os.path.samestat(os.fstat(lock.fileno()), path.stat())
    lock.close()

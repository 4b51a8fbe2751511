"""Ranks in threads of one process with a store in memory; real ones are in tests/scripts/test_launch.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch.distributed as dist

from common.failures import ERROR_FILE
from common.watchdog import START_UP, Watchdog

LIMIT = 1.0  # seconds, so long that a busy machine does not take them for itself
HOST = socket.gethostname()


class Group:
    """Watchdogs that share a store, and the lines with which they would end their processes."""

    def __init__(self, world: int) -> None:
        self.store = dist.HashStore()
        self.lines: dict[int, str] = {}
        self.ended = threading.Event()
        self.waits = ExitStack()
        self.ranks = [Watchdog(lambda: self.store, i, world, LIMIT, self._ends(i)) for i in range(world)]

    def _ends(self, rank: int) -> Callable[[str], None]:
        def end(line: str) -> None:
            self.lines[rank] = line
            if len(self.lines) == len(self.ranks):
                self.ended.set()

        return end

    def start(self) -> None:
        for rank in self.ranks:
            rank.start()
            rank.started()

    def wait(self, rank: int) -> None:
        """This rank enters an exchange and does not come back."""
        self.waits.enter_context(self.ranks[rank].exchanging())

    def line(self) -> str:
        """What all of them ended with."""
        assert self.ended.wait(30), self.lines
        assert len(set(self.lines.values())) == 1
        return self.lines[0]


@pytest.fixture
def group() -> Iterator[Callable[[int], Group]]:
    made: list[Group] = []

    def make(world: int) -> Group:
        made.append(Group(world))
        made[-1].start()
        return made[-1]

    yield make
    for rank in (rank for one in made for rank in one.ranks):
        rank.stop()


def test_the_rank_that_others_wait_for_is_named(group):
    """Not those that wait, whose steps are as old."""
    three = group(3)
    for rank in three.ranks:
        rank.doing("epoch 0 batch 1: reading")
    for rank in (0, 2):
        three.ranks[rank].doing("epoch 0 batch 1: forward and backward")
        three.wait(rank)
    expected = (
        f"rank 1 on {HOST} hangs in 'epoch 0 batch 1: reading': no progress for 1 s, the time-out. "
        "Waiting for it: ranks 0, 2"
    )
    assert three.line() == expected


def test_a_rank_that_waits_for_its_device_alone_is_no_cause(group):
    """NCCL returns at once, so a rank may be behind its exchange and stand still all the same."""
    two = group(2)
    with two.ranks[0].exchanging():
        pass
    assert two.line().startswith(f"rank 1 on {HOST} hangs in 'joining the group'")


def test_all_wait_for_each_other(group):
    two = group(2)
    for i, rank in enumerate(two.ranks):
        rank.doing(f"part {i}")
        two.wait(i)
    expected = "no progress for 1 s, the time-out: all ranks wait for each other. "
    assert two.line() == f"{expected}rank 0 on {HOST}: part 0; rank 1 on {HOST}: part 1"


def test_a_slow_rank_that_goes_on_is_no_failure(group):
    """Validation may be longer on one rank. Nor is one that nobody waits for, or that left the group."""
    waited, alone, left = group(2), group(2), group(2)
    left.ranks[0].stop()
    with waited.ranks[0].exchanging():
        end = time.monotonic() + 2 * LIMIT
        while time.monotonic() < end:
            waited.ranks[1].doing("validate: a batch")
            time.sleep(LIMIT / 50)
    assert waited.lines == alone.lines == left.lines == {}


def test_the_start_up_is_long():
    ended: list[str] = []
    watchdog = Watchdog(dist.HashStore, 0, 1, LIMIT, ended.append)
    assert watchdog.limit == START_UP > LIMIT
    watchdog.started()
    assert watchdog.limit == LIMIT
    assert Watchdog(dist.HashStore, 0, 1, 2 * START_UP, ended.append).limit == 2 * START_UP


def test_a_store_that_does_not_answer_is_rank_0():
    ended: list[str] = []
    done = threading.Event()

    def connect() -> dist.Store:
        raise dist.DistNetworkError("timed out")

    watchdog = Watchdog(connect, 1, 2, LIMIT, lambda line: (ended.append(line), done.set()))
    watchdog.start()
    watchdog.started()
    with watchdog.exchanging():
        assert done.wait(30)
    assert ended[0].startswith("rank 0 hangs: its store has not answered for")


def test_the_end_of_a_process_reports_and_ends_its_workers(tmp_path):
    """A worker of a loader that hangs would outlive it."""
    code = (
        "import multiprocessing, time\n"
        "from common.watchdog import end_process\n"
        "if __name__ == '__main__':\n"
        "    child = multiprocessing.Process(target=time.sleep, args=(300,))\n"
        "    child.start()\n"
        "    end_process('rank 1 hangs')\n"
    )
    path = tmp_path / "error.json"
    run = subprocess.run(  # it returns when nobody holds the output any more
        [sys.executable, "-c", code],
        env={**os.environ, ERROR_FILE: str(path)},
        stdout=subprocess.PIPE,
        timeout=60,
    )
    report = json.loads(path.read_text())
    assert run.returncode == 1 and report["of_group"] and report["message"]["message"] == "rank 1 hangs"

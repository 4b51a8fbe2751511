"""Local processes of an evaluation, on the CPU with gloo."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.run
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from common import distributed
from common.errors import ConfigError
from common.failures import ERROR_FILE, report_failure
from common.train.launch import (
    first_failure,
    run_elastic,
    run_local,
    slurm_environment,
    visible_devices,
)


def _meet(folder: Path) -> int:
    """Every process writes what it knows after all of them met."""
    assert distributed.init_from_env(cuda=False)
    try:
        ranks = distributed.gather_objects(distributed.rank())
        (folder / str(distributed.rank())).write_text(f"{distributed.world_size()} {ranks}")
    finally:
        distributed.shutdown()
    return 0


def _one_fails(rank_that_fails: int) -> int:
    """The other one is busy."""
    distributed.init_from_env(cuda=False)
    if distributed.rank() == rank_that_fails:
        return 3
    time.sleep(60)  # longer than anybody wants to wait
    return 0


def test_processes_form_a_group(tmp_path):
    assert run_local([0, 1], _meet, tmp_path) == 0
    assert (tmp_path / "0").read_text() == "2 [0, 1]" and (tmp_path / "1").read_text() == "2 None"
    assert "WORLD_SIZE" not in os.environ


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_ends_all_with_its_status(rank):
    assert run_local([0, 1], _one_fails, rank) == 3


class TestVisibleDevices:
    @pytest.fixture(autouse=True)
    def _four_gpus(self, monkeypatch):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)

    def test_in_the_order_given(self):
        assert visible_devices([3, 1]) == ["3", "1"]

    def test_within_what_is_visible(self, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7f")
        assert visible_devices([1, 0]) == ["GPU-7f", "4"]

    def test_a_gpu_that_is_not_there(self):
        with pytest.raises(ConfigError, match="--gpus 4: there are 4 GPUs"):
            visible_devices([0, 4])


class TestReports:
    def failure(self, folder: Path, rank: int, exitcode: int = 1, error: Exception | None = None) -> ProcessFailure:
        """Of a process that reported `error`, or was gone before it could."""
        path = folder / f"{rank}" / "error.json"
        if error is not None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(ERROR_FILE, str(path))
                assert report_failure(error)
        return ProcessFailure(rank, 100 + rank, exitcode, str(path))

    def test_nothing_is_written_without_torchrun(self, monkeypatch):
        monkeypatch.delenv(ERROR_FILE, raising=False)
        assert not report_failure(ValueError("x"))

    def test_the_first_report_is_the_cause(self, tmp_path):
        """Within one second, whatever the ranks and the kinds of error are."""
        order = [2, 0, 1]
        failures = {rank: self.failure(tmp_path, rank, error=RuntimeError(f"of {rank}")) for rank in order}
        assert len({failure.timestamp for failure in failures.values()}) <= 2
        rank, failure = first_failure(dict(sorted(failures.items())))
        assert rank == 2 and failure.message["message"] == "of 2"

    def test_a_killed_process_comes_before_those_that_lost_it(self, tmp_path):
        failures = {
            0: self.failure(tmp_path, 0, error=RuntimeError("lost a peer")),
            1: self.failure(tmp_path, 1, -signal.SIGKILL),
        }
        failures[1].timestamp += 1  # it is that of the moment at which the launcher looked
        assert first_failure(failures)[0] == 1

    def test_a_report_about_the_group_comes_before_a_killed_process(self, tmp_path, monkeypatch):
        """The launcher kills the rank that hangs."""
        path = tmp_path / "0" / "error.json"
        monkeypatch.setenv(ERROR_FILE, str(path))
        report_failure(None, "rank 1 hangs", of_group=True)
        failures = {0: ProcessFailure(0, 100, 1, str(path)), 1: self.failure(tmp_path, 1, -signal.SIGKILL)}
        rank, failure = first_failure(failures)
        assert rank == 0 and failure.message["message"] == "rank 1 hangs"

    @pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGTERM])
    def test_an_aborted_or_terminated_process_is_a_consequence(self, tmp_path, number):
        """nccl aborts a process that lost another one, and torchrun terminates the others after a failure."""
        failures = {
            0: self.failure(tmp_path, 0, -number),
            1: self.failure(tmp_path, 1, error=KeyError("cause")),
        }
        assert first_failure(failures)[0] == 1

    def test_a_line_instead_of_a_traceback(self, tmp_path, monkeypatch):
        """The format is that of torchrun, which reads it too."""
        monkeypatch.setenv(ERROR_FILE, str(tmp_path / "deep" / "error.json"))
        assert report_failure(ConfigError("a\nb"), "a b")
        content = json.loads((tmp_path / "deep" / "error.json").read_text())["message"]
        assert content["message"] == "a b" and content["extraInfo"]["py_callstack"] == ""
        assert abs(int(content["extraInfo"]["timestamp"]) - time.time()) < 60
        try:
            raise KeyError("fault")
        except KeyError as error:
            assert report_failure(error)
        content = json.loads((tmp_path / "deep" / "error.json").read_text())["message"]
        assert content["extraInfo"]["py_callstack"].strip().endswith("KeyError: 'fault'")


def test_the_address_of_a_machine_reaches_torchrun(monkeypatch):
    given = []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # run_elastic sets it
    monkeypatch.setattr(torch.distributed.run, "run", given.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for address in ("10.0.0.2", ""):
        assert run_elastic(["x.py"], 2, nodes=2, node=1, host="node0", port=29500, local_address=address) == 0
    assert [args.local_addr for args in given] == ["10.0.0.2", None]


class TestSlurm:
    given = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_NODELIST": "gpu07,login", "SLURM_LOCALID": "1"}

    def test_environment(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert slurm_environment(self.given) == {
            "MASTER_ADDR": "gpu07",
            "MASTER_PORT": "29500",
            "WORLD_SIZE": "8",
            "RANK": "3",
            "LOCAL_RANK": "1",
        }

    @pytest.mark.parametrize(
        ("gpus", "task", "local"),
        [
            (4, {"SLURM_PROCID": "2", "SLURM_LOCALID": "1"}, "1"),  # cyclic over two nodes
            (8, {"SLURM_PROCID": "14", "SLURM_LOCALID": "7"}, "7"),
            (1, {"SLURM_PROCID": "3", "SLURM_LOCALID": "3"}, "0"),  # a GPU for each task
            (4, {"SLURM_PROCID": "6", "SLURM_LOCALID": ""}, "2"),
        ],
    )
    def test_the_gpu_of_a_task(self, monkeypatch, gpus, task, local):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        assert slurm_environment(self.given | task)["LOCAL_RANK"] == local

    def port(self, **job: str) -> int:
        return int(slurm_environment(self.given | job)["MASTER_PORT"])

    def test_jobs_and_steps_have_ports_of_their_own(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        jobs = [self.port(SLURM_JOB_ID=str(job)) for job in range(7_123_990, 7_124_010)]
        steps = [self.port(SLURM_JOB_ID="7123990", SLURM_STEP_ID=str(step)) for step in range(1, 4)]
        assert len({*jobs, *steps}) == 23 and all(20000 <= port < 30000 for port in jobs + steps)
        first, second = ({"SLURM_PROCID": rank, "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"} for rank in "01")
        assert self.port(**first) == self.port(**second)

    def test_a_given_port_is_kept(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert self.port(SLURM_JOB_ID="77", MASTER_PORT="1234") == 1234

    def test_missing_variables(self):
        with pytest.raises(ConfigError, match="--slurm: SLURM_PROCID, SLURM_NODELIST not set"):
            slurm_environment({"SLURM_NTASKS": "2"})

"""Scripts that start processes: what runs, what the user sees, and what becomes of a run that is interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from common.train.launch import free_port
from common.weights import checkpoint
from tests.paths import ROOT
from tests.task_check import train_losses
from tests.tiny import tiny_vqa, write_settings

WAIT = 120
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # sums are in the same order
CHILD = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from common import distributed
from common.cli import guarded
from common.errors import ConfigError

def run():
    distributed.init_from_env(cuda=False, timeout=3)
    what, rank = sys.argv[1], distributed.rank()
    if what == "fine":
        text = f"rank {{rank}} of {{distributed.world_size()}}, threads {{os.environ['OMP_NUM_THREADS']}}\\n"
        os.write(1, text.encode())  # a line in one piece, beside that of the other process
    if what == "mistake" and rank == 1:
        raise ConfigError("TRAIN.LR: expected a number,\\ngot 'high'")
    if what == "fault" and rank == 1:
        raise KeyError("a fault of the program")
    if what == "killed" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hangs":
        distributed.started_up()
        distributed.doing("epoch 0 batch 7: reading")
        if rank == 1:
            time.sleep(300)
    distributed.barrier()
    if what == "once" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.barrier()
    if what == "once" and rank == 0:
        print("together after a restart", flush=True)

sys.exit(guarded(run))
"""


@pytest.fixture
def child(tmp_path: Path) -> Path:
    path = tmp_path / "child.py"
    path.write_text(CHILD.format(root=str(ROOT)))
    return path


def write_config(world: Path, folder: Path) -> Path:
    """Ten updates of two samples from each process, on a CPU without workers."""
    settings = tiny_vqa(world, Path("out"))
    settings["TRAIN"] |= {"BATCH_IMAGES": 2, "GRAD_ACCUMULATE_STEPS": 1, "MAX_STEPS": 10}
    settings |= {"NUM_WORKERS_PER_GPU": 0, "CHECKPOINT_STEPS": 2, "VAL_FREQUENT": 100}
    return write_settings(settings, folder / "tiny.yaml")


@pytest.fixture
def cfg_path(tiny_world: Path, tmp_path: Path) -> Path:
    return write_config(tiny_world, tmp_path)


def environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MASTER_", "SLURM_", "MAX_RESTARTS"))}
    return kept | {"PYTHON": sys.executable} | more


def start(*args: object, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        list(map(str, args)),
        cwd=ROOT,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that what is left of a test can be ended
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        out, _ = process.communicate(timeout=WAIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out


def run(*args: object, **more: str) -> tuple[int, str]:
    return finish(start(*args, **more))


def launch(*args: object, **more: str) -> tuple[int, str]:
    return run(sys.executable, "scripts/launch.py", *args, **more)


def single(cfg: Path, folder: Path, *more: str) -> list[object]:
    return ["scripts/dist_run_single.sh", 2, "vqa/train_end2end.py", cfg, folder, *more]


def trained(folder: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load_file(next(folder.rglob("tiny-latest.model")))
    assert state["run"]["position"]["updates"] == 10
    return state["state_dict"]


def same_weights(one: Path, other: Path) -> bool:
    a, b = trained(one), trained(other)
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def reference(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run of two processes writes."""
    folder = tmp_path_factory.mktemp("reference")
    status, out = run(*single(write_config(tiny_world, folder), folder), **ONE_THREAD)
    assert status == 0, out
    return folder


class TestWhatTheUserSees:
    def test_processes_and_their_threads(self, child):
        status, out = launch("--nproc_per_node", 2, child, "fine")
        threads = max(1, (os.cpu_count() or 1) // 2)
        lines = sorted(line for line in out.splitlines() if line.startswith("rank"))
        assert status == 0 and lines == [f"rank {rank} of 2, threads {threads}" for rank in (0, 1)]

    def test_a_mistake_is_one_line(self, child):
        status, out = launch("--nproc_per_node", 2, child, "mistake")
        last = out.strip().splitlines()[-1]
        assert status == 1 and "failed first: TRAIN.LR: expected a number, got 'high'" in last
        assert "Traceback" not in out

    def test_a_fault_of_the_program_shows_its_own_traceback_last(self, child):
        status, out = launch("--nproc_per_node", 2, child, "fault")
        assert status == 1 and out.strip().endswith("KeyError: 'a fault of the program'")
        assert "child.py" in out and "rank 1 on" in out

    def test_a_killed_process_ends_all(self, child):
        status, out = launch("--nproc_per_node", 2, child, "killed")
        assert status == 128 + signal.SIGKILL and "SIGKILL" in out.strip().splitlines()[-1]

    def test_a_rank_that_hangs_ends_all_and_is_named(self, child):
        """And not the rank that waited for it, nor the one that the launcher ends."""
        status, out = launch("--nproc_per_node", 2, child, "hangs")
        last = out.strip().splitlines()[-1]
        assert status == 1 and "failed first" not in out and "Traceback" not in out, out
        assert re.search(
            r"^rank 1 on \S+ hangs in 'epoch 0 batch 7: reading': no progress for 3 s, the time-out. "
            r"Waiting for it: rank 0$",
            last,
        ), out

    def test_a_restart(self, child):
        status, out = launch("--nproc_per_node", 2, child, "once", MAX_RESTARTS="1")
        assert status == 0 and "together after a restart" in out

    def test_a_restart_on_two_nodes(self, child):
        """The node whose process did not fail starts anew with the other."""
        options = ["--nnodes", 2, "--master_port", free_port(), "--max_restarts", 1]
        nodes = [start(sys.executable, "scripts/launch.py", *options, "--node_rank", i, child, "once") for i in (0, 1)]
        ends = [finish(node) for node in nodes]
        assert [status for status, _ in ends] == [0, 0], ends
        assert "together after a restart" in "".join(out for _, out in ends)

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (["--nproc_per_node", 0, "vqa/test.py"], "expected at least 1"),
            (["--nnodes", 2, "--node_rank", 2, "vqa/test.py"], "this one number 2"),
            (["no/such.py"], "no script no/such.py"),
        ],
    )
    def test_wrong_arguments(self, args, message):
        status, out = launch(*args)
        assert status == 2 and message in out

    @pytest.mark.parametrize(
        "name",
        ["dist_run_single", "dist_run_multi", "nondist_run", "dist_run_slurm", "nondist_run_slurm", "init_slurm"],
    )
    def test_usage(self, name):
        status, out = run(f"scripts/{name}.sh")
        assert status != 0 and f"{name}.sh" in out and "sage" in out


class TestTraining:
    def test_nondist_run(self, cfg_path, tmp_path):
        status, out = run("scripts/nondist_run.sh", "vqa/train_end2end.py", cfg_path, tmp_path)
        assert status == 0, out
        assert len(trained(tmp_path)) > 10

    def test_two_nodes_train_one_model(self, cfg_path, tmp_path, reference):
        """Each has an agent of its own; they meet over the loopback. The weights are those of two local processes."""
        port = str(free_port())
        nodes = [
            start(
                *("scripts/dist_run_multi.sh", 2, rank, "127.0.0.1", 1, "vqa/train_end2end.py", cfg_path, tmp_path),
                MASTER_PORT=port,
                LOCAL_ADDR="127.0.0.1",
                **ONE_THREAD,
            )
            for rank in (0, 1)
        ]
        for status, out in map(finish, nodes):
            assert status == 0, out
        assert same_weights(tmp_path, reference)

    def test_slurm(self, cfg_path, tmp_path, reference):
        """With a srun that starts two tasks here, and a scontrol that knows the hosts."""
        port = str(free_port())
        tools = tmp_path / "tools"
        tools.mkdir()
        (tools / "scontrol").write_text(
            '#!/bin/bash\n[ "$*" = "show hostnames node[1-2]" ] && echo 127.0.0.1 && echo x\n'
        )
        (tools / "srun").write_text(
            "#!/bin/bash\n"
            f'echo "$@" > {tmp_path}/srun.txt\n'
            "while [[ $1 == -* ]]; do [[ $1 == -p ]] && shift; shift; done\n"
            "export SLURM_NTASKS=2 SLURM_NODELIST='node[1-2]'\n"
            'SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait $!\n'
        )
        for tool in tools.iterdir():
            tool.chmod(0o755)
        path = f"{tools}:{os.environ['PATH']}"
        status, out = run(
            *("scripts/dist_run_slurm.sh", "part", "job", "vqa/train_end2end.py", cfg_path, tmp_path, 2),
            PATH=path,
            MASTER_PORT=port,
            **ONE_THREAD,
        )
        assert status == 0, out
        assert same_weights(tmp_path, reference)
        assert "-p part --job-name=job --gres=gpu:2 --ntasks=2" in (tmp_path / "srun.txt").read_text()


class TestInterruption:
    """The next start goes on from the newest good position, to the weights and losses of an uninterrupted run."""

    def until(self, folder: Path, updates: int, process: subprocess.Popen[str]) -> None:
        """Wait until so many updates are in the metrics."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end and process.poll() is None:
            files = list(folder.rglob("metrics.jsonl"))
            if files and files[0].read_text().count('"kind": "train"') >= updates:
                return
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(process.communicate()[0])

    def ranks(self, process: subprocess.Popen[str]) -> list[int]:
        """Process ids of the ranks below a launcher."""
        found = subprocess.run(
            ["pgrep", "-P", str(process.pid), "-f", "train_end2end.py"], capture_output=True, text=True
        )
        return [int(pid) for pid in found.stdout.split()]

    @pytest.mark.parametrize("restarts", ["0", "1"])
    def test_kill_9_of_one_rank(self, cfg_path, tmp_path, reference, restarts):
        process = start(*single(cfg_path, tmp_path), MAX_RESTARTS=restarts, **ONE_THREAD)
        self.until(tmp_path, 4, process)
        os.kill(self.ranks(process)[-1], signal.SIGKILL)
        status, out = finish(process)
        if restarts == "0":
            assert status == 128 + signal.SIGKILL, out
            status, out = run(*single(cfg_path, tmp_path), **ONE_THREAD)
        assert status == 0 and "going on from" in out, out
        assert same_weights(tmp_path, reference)
        assert losses(tmp_path) == losses(reference)

    @pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGUSR1])
    def test_a_signal_to_the_launcher(self, cfg_path, tmp_path, reference, kind):
        process = start(*single(cfg_path, tmp_path), **ONE_THREAD)
        self.until(tmp_path, 3, process)
        process.send_signal(kind)
        status, out = finish(process)
        assert status == 128 + kind and f"stopped by {kind.name}" in out
        status, out = run(*single(cfg_path, tmp_path), **ONE_THREAD)
        assert status == 0 and re.search(r"going on from \S+ at epoch \d, batch \d", out), out
        assert same_weights(tmp_path, reference) and losses(tmp_path) == losses(reference)

    def test_a_closed_terminal_saves_the_position(self, cfg_path, tmp_path):
        process = start(*single(cfg_path, tmp_path), **ONE_THREAD)
        self.until(tmp_path, 3, process)
        os.killpg(process.pid, signal.SIGHUP)
        status, out = finish(process)
        assert status == 128 + signal.SIGHUP, out
        assert next(tmp_path.rglob("tiny-latest.model")) and "stopped by SIGHUP" in out

    def test_nohup_protects_all_processes(self, cfg_path, tmp_path, reference):
        process = start("nohup", *single(cfg_path, tmp_path), **ONE_THREAD)
        self.until(tmp_path, 3, process)
        os.killpg(process.pid, signal.SIGHUP)
        status, out = finish(process)
        assert status == 0, out
        assert same_weights(tmp_path, reference)

    def test_a_truncated_newest_position(self, cfg_path, tmp_path, reference):
        status, out = run(*single(cfg_path, tmp_path, "--set", "TRAIN.MAX_STEPS=7"), **ONE_THREAD)
        assert status == 0, out
        latest = next(tmp_path.rglob("tiny-latest.model"))
        os.truncate(latest, latest.stat().st_size // 2)
        status, out = run(*single(cfg_path, tmp_path), **ONE_THREAD)
        assert status == 0 and "tiny-latest.model: cannot be read" in out, out
        assert re.search(r"going on from \S+tiny-(previous|0000).model", out), out
        assert same_weights(tmp_path, reference) and losses(tmp_path) == losses(reference)


def losses(folder: Path) -> dict[int, float]:
    """The last word on the loss of each batch; speeds aside."""
    return train_losses(next(folder.rglob("metrics.jsonl")).parent)

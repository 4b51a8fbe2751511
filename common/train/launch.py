"""Starting processes: local ones for an evaluation, torchrun for training, and what SLURM says about its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import start_processes
from torch.multiprocessing.spawn import ProcessExitedException

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where torchrun looks for what a process has to say about its end
SHUTDOWN_SECONDS = 120  # for a process that was told to stop: it finishes a batch and writes a checkpoint
SLURM_PORT = 29500
LOST_PEER = ("closed by peer", "reset by peer", "NCCL error", "DistBackendError", "recv, got 0 bytes", "/gloo/")
CONSEQUENCE_SECONDS = 3600


def free_port() -> int:
    """A port of this machine on which nobody listens now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# ---------------------------------------------------------------------------------------------- torchrun


def run_elastic(
    command: Sequence[str],
    processes: int,
    nodes: int = 1,
    node: int = 0,
    host: str = "127.0.0.1",
    port: int = 0,
    restarts: int = 0,
) -> int:
    """A Python script in `processes` processes on this machine, one of `nodes`, under torchrun; returns its status.

    command: path of the script and its arguments. node: number of this machine. host, port: where machine 0 listens; 0
    takes a free port, on a single machine. restarts: how often all processes start again after one failed.
    Raises ValueError where this machine has fewer GPUs than processes.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and processes > gpus:
        raise ValueError(f"{processes} processes on this machine, which has {gpus} GPUs that this program may use")
    # Beside each other as many threads as there are cores; torchrun would give each process a single one.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if restarts:  # the store of the agents would tell the addresses of the processes that are gone
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    options = [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "--rdzv-backend=c10d"]
    options += [f"--nnodes={nodes}", f"--rdzv-endpoint={host}:{port}", "--rdzv-id=vl-bert"]
    if nodes > 1:  # otherwise every agent that finds `host` to be its own name would want to listen there
        options.append(f"--rdzv-conf=is_host={int(node == 0)}")
    parser = get_args_parser()
    if "--shutdown-timeout" in parser._option_string_actions:
        options.append(f"--shutdown-timeout={SHUTDOWN_SECONDS}")
    try:
        run(parser.parse_args([*options, *command]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(f"rank {rank} on {socket.gethostname()} failed first: {_reason(failure)}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        print(f"stopped by {error.sigval.name}", file=sys.stderr)
        return 128 + error.sigval
    return 0


def _reason(failure: Any) -> str:
    """What a process left for us about its end, a traceback or a line; else the signal or exit status."""
    if isinstance(failure.message, dict):
        return failure.message["extraInfo"]["py_callstack"] or failure.message["message"]
    return f"exit status {failure.exitcode}" if failure.exitcode > 0 else str(failure.message)


def report_failure(error: BaseException, line: str = "") -> bool:
    """Leave an error to the launcher, which prints only that of the process that failed first; False without torchrun.

    line: what to print of an error that is no fault of the program, instead of its traceback.
    """
    if ERROR_FILE not in os.environ:
        return False
    stack = "" if line else "".join(traceback.format_exception(error))
    # torchrun takes the earliest, to the second, for the cause: a process that lost another one is none.
    late = CONSEQUENCE_SECONDS if any(text in str(error) for text in LOST_PEER) else 0
    extra = {"py_callstack": stack, "timestamp": str(int(time.time()) + late)}
    path = Path(os.environ[ERROR_FILE])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"message": {"message": line or str(error), "extraInfo": extra}}), encoding="utf-8")
    return True


# ---------------------------------------------------------------------------------------------- SLURM


def slurm_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would say of the process, from what SLURM says: address, port, sizes and ranks (spec 03 §14).

    environment: SLURM_PROCID, SLURM_NTASKS and SLURM_NODELIST are needed; MASTER_ADDR and MASTER_PORT are kept.
    Raises ValueError naming what is missing.
    """
    missing = [name for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST") if name not in environment]
    if missing:
        raise ValueError(f"--slurm: {', '.join(missing)} not set; start with srun, or scripts/dist_run_slurm.sh")
    rank = environment["SLURM_PROCID"]
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local = int(rank) % gpus if gpus else int(environment.get("SLURM_LOCALID", "0"))
    return {
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(environment["SLURM_NODELIST"]),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(SLURM_PORT),
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "RANK": rank,
        "LOCAL_RANK": str(local),
    }


def _first_host(nodes: str) -> str:
    """The first host of a node list such as "gpu[03-07],login"."""
    if "[" not in nodes:
        return nodes.split(",")[0]
    try:
        hosts = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"--slurm: scontrol cannot expand SLURM_NODELIST {nodes!r} ({error}); set MASTER_ADDR"
        ) from error
    return hosts.stdout.split()[0]


# ---------------------------------------------------------------------------------------------- evaluation


def run_local(gpus: Sequence[int], run: Callable[..., int], *args: Any) -> int:
    """`run(*args)` in one process for each entry of `gpus`; returns the first exit status that is not 0.

    The processes find each other in the environment as under torchrun. Process r sees the GPUs that `gpus` lists, in
    this order; without CUDA they share the cores of the CPU.
    """
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(gpus))}
    if torch.cuda.is_available():
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible_devices(gpus))
    threads = max(1, torch.get_num_threads() // len(gpus))
    try:
        start_processes(_process, (environment, threads, run, args), nprocs=len(gpus), start_method="spawn")
    except ProcessExitedException as error:
        return error.exit_code
    return 0


def visible_devices(gpus: Sequence[int]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES must list for `gpus`, which count within what it lists now.

    Raises ValueError for a number that this process has no device for.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]
    missing = [gpu for gpu in gpus if not 0 <= gpu < len(devices)]
    if missing:
        raise ValueError(f"--gpus {missing[0]}: there are {len(devices)} GPUs, counted from 0")
    return [devices[gpu] for gpu in gpus]


def _process(rank: int, environment: Mapping[str, str], threads: int, run: Callable[..., int], args: Any) -> None:
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(threads)
    status = run(*args)
    if status:
        sys.exit(status)

"""Starts processes: local ones for an evaluation, torchrun for training. Reads the environment of SLURM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.multiprocessing import start_processes
from torch.multiprocessing.spawn import ProcessExitedException

from common.errors import ConfigError

if TYPE_CHECKING:  # only the launcher imports torchrun
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

SHUTDOWN_SECONDS = 120  # between SIGTERM and SIGKILL: a process finishes its batch and writes a checkpoint
# nccl aborts a process that lost another one, and torchrun terminates processes that have not begun to run our code.
CONSEQUENCES = (-signal.SIGABRT, -signal.SIGTERM)
PORT = 29500  # torchrun's
SLURM_PORTS = range(20000, 30000)  # below those that Linux gives to connections


def free_port() -> int:
    """A port of this machine on which no process listens now."""
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
    local_address: str = "",
) -> int:
    """Run a Python script in `processes` processes on this machine, one of `nodes`, under torchrun.

    command: path of the script and its arguments. node: number of this machine, from 0. host, port: where machine 0
    listens; port 0 takes a free one, on a single machine. restarts: how often all processes start again.
    local_address: name or IP address of this machine that the others reach; "" for that of its host name.
    Returns the exit status: 0, that of the process that failed first, or 128 + its signal.
    Raises ConfigError where this machine has GPUs, but fewer than processes.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and processes > gpus:
        raise ConfigError(f"{processes} processes on this machine, which has {gpus} GPUs that this program may use")
    # All processes together have a thread for each core. The default of torchrun is one thread for each process.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if restarts:  # a shared store would still hold the addresses of the processes that are gone
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    options = [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "--rdzv-backend=c10d"]
    options += [f"--nnodes={nodes}", f"--rdzv-endpoint={host}:{port}", "--rdzv-id=vl-bert"]
    if local_address:
        options.append(f"--local-addr={local_address}")
    if nodes > 1:  # by default every agent listens whose machine has the name `host`
        options.append(f"--rdzv-conf=is_host={int(node == 0)}")
    parser = get_args_parser()
    if "--signals-to-handle" in parser.format_help():  # not every PyTorch has it
        options.append(f"--signals-to-handle={','.join(forwarded_signals())}")
    if "--shutdown-timeout" in parser.format_help():  # not every PyTorch has it
        options.append(f"--shutdown-timeout={SHUTDOWN_SECONDS}")
    try:
        run(parser.parse_args([*options, *command]))
    except ChildFailedError as error:
        rank, failure = first_failure(error.failures)
        who = "" if _is_of_group(failure) else f"rank {rank} on {socket.gethostname()} failed first: "
        print(f"{who}{_reason(failure)}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        print(f"stopped by {error.sigval.name}", file=sys.stderr)
        return 128 + error.sigval
    return 0


def forwarded_signals() -> list[str]:
    """Names of the signals that the launcher forwards to its processes.

    Without SIGHUP where it is ignored, as under `nohup`: a handler would end the run, and the processes, which inherit
    that it is ignored, would not.
    """
    names = ["SIGTERM", "SIGINT", "SIGQUIT", "SIGUSR1"]
    return names if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [*names, "SIGHUP"]


def first_failure(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """Rank and failure of the process that failed first; the others failed because they lost this one.

    A report about the whole group comes first: the launcher kills a rank that hangs. A process that was killed leaves
    no report and comes before those that left one. Reports are in the order of their time. A process without a report
    that ended by CONSEQUENCES comes last.
    """

    def order(failure: ProcessFailure) -> tuple[int, float]:
        reported = failure.error_file_data.get("time") if isinstance(failure.error_file_data, dict) else None
        if reported is not None:
            return -1 if _is_of_group(failure) else 1, float(reported)
        return 2 if failure.exitcode in CONSEQUENCES else 0, float(failure.timestamp)

    rank = min(failures, key=lambda rank: order(failures[rank]))
    return rank, failures[rank]


def _is_of_group(failure: ProcessFailure) -> bool:
    """Whether the process reported what its whole group failed of."""
    return isinstance(failure.error_file_data, dict) and bool(failure.error_file_data.get("of_group"))


def _reason(failure: ProcessFailure) -> str:
    """The traceback or line that a process reported, else its signal or exit status."""
    message: Any = failure.message  # a text without a report
    if isinstance(message, dict):
        return message["extraInfo"]["py_callstack"] or message["message"]
    return f"exit status {failure.exitcode}" if failure.exitcode > 0 else str(message)


# ---------------------------------------------------------------------------------------------- SLURM


def slurm_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that torchrun would set, from those of SLURM: address, port, world size and ranks (original 3.28).

    environment: SLURM_PROCID, SLURM_NTASKS and SLURM_NODELIST are needed; MASTER_ADDR and MASTER_PORT are kept. The
    local rank is SLURM_LOCALID, modulo the GPUs that the process sees: a task may see the GPU of its own alone.
    Raises ConfigError naming missing variables.
    """
    missing = [name for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST") if name not in environment]
    if missing:
        raise ConfigError(f"--slurm: {', '.join(missing)} not set; start with srun, or scripts/dist_run_slurm.sh")
    rank = environment["SLURM_PROCID"]
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local = int(environment.get("SLURM_LOCALID") or (rank if gpus else 0))
    return {
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(environment["SLURM_NODELIST"]),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_slurm_port(environment)),
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "RANK": rank,
        "LOCAL_RANK": str(local % gpus if gpus else local),
    }


def _slurm_port(environment: Mapping[str, str]) -> int:
    """The same port on all nodes of a job step; another one for another job or step on the same node."""
    job, step = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_STEP_ID", "")
    if not job.isdecimal():
        return PORT
    return SLURM_PORTS[(int(job) + 1000 * int(step if step.isdecimal() else 0)) % len(SLURM_PORTS)]


def _first_host(nodes: str) -> str:
    """The first host of a node list such as "gpu[03-07],login"."""
    if "[" not in nodes:
        return nodes.split(",")[0]
    try:
        hosts = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(
            f"--slurm: scontrol cannot expand SLURM_NODELIST {nodes!r} ({error}); set MASTER_ADDR"
        ) from error
    return hosts.stdout.split()[0]


# ---------------------------------------------------------------------------------------------- evaluation


def run_local(gpus: Sequence[int], run: Callable[..., int], *args: object) -> int:
    """Call `run(*args)` in one process for each entry of `gpus`. Returns the first exit status that is not 0.

    The processes have the environment variables of torchrun. They see the GPUs that `gpus` lists, in this order.
    Without CUDA they share the cores of the CPU. Raises ConfigError for a GPU that is not there.
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
    """The entries of CUDA_VISIBLE_DEVICES for `gpus`, which are indices into what it lists now.

    Raises ConfigError for an index without a device.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]
    missing = [gpu for gpu in gpus if not 0 <= gpu < len(devices)]
    if missing:
        raise ConfigError(f"--gpus {missing[0]}: there are {len(devices)} GPUs, counted from 0")
    return [devices[gpu] for gpu in gpus]


def _process(
    rank: int, environment: Mapping[str, str], threads: int, run: Callable[..., int], args: tuple[object, ...]
) -> None:
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(threads)
    status = run(*args)
    if status:
        sys.exit(status)

"""Several processes on this machine for one evaluation; training is launched by torchrun."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.multiprocessing import start_processes
from torch.multiprocessing.spawn import ProcessExitedException


def run_local(gpus: Sequence[int], run: Callable[..., int], *args: Any) -> int:
    """`run(*args)` in one process for each entry of `gpus`; returns the first exit status that is not 0.

    The processes find each other in the environment as under torchrun. Process r sees the GPUs that `gpus` lists, in
    this order; without CUDA they share the cores of the CPU.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(gpus))}
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

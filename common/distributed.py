"""Ranks and collectives; every function is a no-op on one process.

The only importer of `torch.distributed` beside the launcher, so the rest of the code reads the same for one process and
for many.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


def init_from_env(cuda: bool | None = None) -> bool:
    """Join the process group that torchrun describes in the environment.

    cuda: whether this run computes on GPUs (nccl beside gloo); None asks torch. The process then
        owns GPU `local_rank()`.
    Returns whether there is a group: False, and nothing done, without WORLD_SIZE or with a world of one. A second call
    does nothing.
    """
    if is_distributed():
        return True
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    if torch.cuda.is_available() if cuda is None else cuda:
        device = torch.device("cuda", local_rank())
        torch.cuda.set_device(device)
        # gloo stays for objects and CPU tensors.
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    return True


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if is_distributed():
        gc.collect()  # a wrapped model that outlives its group may abort the process at its end
        dist.destroy_process_group()


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def local_rank() -> int:
    """The place of this process on its machine, which is also its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here."""
    if is_distributed():
        dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all ranks, on the device of the argument, which is not changed.

    The ranks may hold it on different devices (a metric that saw no batch is still on the CPU): what all of them use
    for the exchange depends on the group alone, otherwise they would wait in different collectives.
    """
    if not is_distributed():
        return tensor
    total = tensor.to(_exchange_device(), copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def all_reduce_max(value: int) -> int:
    """The largest `value` of all ranks."""
    if not is_distributed():
        return value
    largest = torch.tensor(value, device=_exchange_device())
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def any_rank(value: bool) -> bool:
    """Whether it is so on any rank."""
    return bool(all_reduce_max(int(value)))


def broadcast_object(value: T) -> T:
    """Rank 0's picklable `value`, on every rank."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: T) -> list[T] | None:
    """The picklable `value` of every rank, in rank order, on rank 0; None on the others."""
    if not is_distributed():
        return [value]
    values: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, values, dst=0)
    return values


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The model whose gradients are averaged over all ranks, and whose weights start as rank 0's; itself on one."""
    if not is_distributed():
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    # Switches of the configs leave parameters out of the loss (a pooler, a frozen text side), the same ones in every
    # step: a static graph finds them in the first step, and the order of the buckets stays what it was then.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the new name of broadcast_buffers is not in every torch
        return _Replicas(model, device_ids, broadcast_buffers=False, static_graph=True)


class _Replicas(DistributedDataParallel):
    graph_is_known = False


@contextmanager
def gradient_exchange(model: nn.Module, now: bool) -> Iterator[None]:
    """Context of forward and backward: whether the gradients, with those that wait, are averaged over ranks.

    The first backward always does it, since there a static graph looks for parameters that have no gradient; the
    average of what waits and the average of what is added later give the same sum.
    """
    if not isinstance(model, _Replicas):
        yield
        return
    now, model.graph_is_known = now or not model.graph_is_known, True
    with nullcontext() if now else model.no_sync():
        yield


def _exchange_device() -> torch.device:
    if "nccl" in str(dist.get_backend_config()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")

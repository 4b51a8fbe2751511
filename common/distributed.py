"""Ranks and collectives. On one process every function is a no-op.

Only this module and the launcher import `torch.distributed`, so the rest of the code is the same for one process and
for many.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


def init_from_env(cuda: bool | None = None) -> bool:
    """Join the process group that the environment variables of torchrun describe. A second call does nothing.

    cuda: whether this run computes on GPUs, with nccl beside gloo; None takes `torch.cuda.is_available()`. The process
        then owns GPU `local_rank()`.
    Returns whether there is a group. Without WORLD_SIZE, or with a world of one, there is none.
    """
    if is_distributed():
        return True
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    if torch.cuda.is_available() if cuda is None else cuda:
        device = torch.device("cuda", local_rank())
        torch.cuda.set_device(device)
        # gloo exchanges objects and CPU tensors.
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    return True


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if is_distributed():
        gc.collect()  # a wrapped model that outlives its group may abort the process at exit
        dist.destroy_process_group()


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def local_rank() -> int:
    """Number of this process on its machine, which is also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    """Wait until every rank calls this."""
    if is_distributed():
        dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all ranks, on the device of the argument. The argument is not changed.

    The ranks may hold it on different devices: a metric that saw no batch is still on the CPU. So the device of the
    exchange depends on the group alone. Otherwise ranks would wait in different collectives.
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


def all_reduce_max_later(values: Tensor) -> Tensor:
    """The largest of each value over all ranks, in place. The host does not wait for a GPU, which does it later."""
    if is_distributed():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def any_rank(value: bool) -> bool:
    """Whether `value` is true on any rank."""
    return bool(all_reduce_max(int(value)))


def broadcast_object(value: T) -> T:
    """The `value` of rank 0, on every rank. It must be picklable."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: T) -> list[T] | None:
    """On rank 0 the `value` of every rank, in rank order; None on the other ranks. Values must be picklable."""
    if not is_distributed():
        return [value]
    values: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, values, dst=0)
    return values


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with gradients averaged over all ranks and with the weights of rank 0. One process returns `model`."""
    if not is_distributed():
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    # Some configs leave parameters out of the loss (a pooler, a frozen text side), the same ones in every step. A
    # static graph finds them in the first step and keeps the order of the buckets.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # not every PyTorch has the new name of broadcast_buffers
        return _Replica(model, device_ids, broadcast_buffers=False, static_graph=True, gradient_as_bucket_view=True)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside what `wrap` returned."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextmanager
def gradient_exchange(model: nn.Module, now: bool) -> Iterator[None]:
    """Context of forward and backward. now: average the gradients over ranks, with those that have accumulated."""
    if not isinstance(model, _Replica):
        yield
        return
    with model.exchange(now):
        yield


class _Replica(DistributedDataParallel):
    """One rank's copy of the model."""

    _graph_is_known = False

    def exchange(self, now: bool) -> AbstractContextManager[None]:
        """See `gradient_exchange`.

        The first backward always averages, because a static graph looks there for parameters without gradient. The
        result is the same: the average of the first gradients plus the average of later ones is the average of the sum.
        """
        skip = self._graph_is_known and not now
        self._graph_is_known = True
        return self.no_sync() if skip else nullcontext()


def _exchange_device() -> torch.device:
    if "nccl" in str(dist.get_backend_config()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")

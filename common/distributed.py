"""Ranks and collectives. On one process every function is a no-op.

Only this module and the launcher import `torch.distributed`, so the rest of the code is the same for one process and
for many.
"""

from __future__ import annotations

import gc
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.errors import ConfigError
from common.watchdog import START_UP, Watchdog

T = TypeVar("T")

STEP_SECONDS = 600.0
_watchdog: Watchdog | None = None  # of the group


def init_from_env(cuda: bool | None = None, timeout: float = STEP_SECONDS) -> bool:
    """Join the process group that the environment variables of torchrun describe. A second call does nothing.

    cuda: whether this run computes on GPUs, with nccl beside gloo; None takes `torch.cuda.is_available()`. The process
        then owns GPU `local_rank()`.
    timeout: seconds. A rank that others wait for, and that makes no progress for as long, ends all of them. Until
        `started_up` is called, the time is at least `common.watchdog.START_UP`.
    Returns whether there is a group. Without WORLD_SIZE, or with a world of one, there is none.
    Raises ConfigError where there is no such GPU.
    """
    if is_distributed():
        return True
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    # Only a wait that the watchdog does not see ends by this one, such as that for ranks that never joined.
    limit = timedelta(seconds=max(timeout, START_UP))
    if torch.cuda.is_available() if cuda is None else cuda:
        device = use_gpu(local_rank(), "LOCAL_RANK")
        # gloo exchanges objects and CPU tensors.
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device, timeout=limit)
    else:
        dist.init_process_group("gloo", timeout=limit)
    global _watchdog
    _watchdog = Watchdog(_connect, rank(), world_size(), timeout)
    _watchdog.start()
    return True


def _connect() -> dist.Store:
    """A connection to the store by which the ranks found each other: the watchdog must not wait for the main thread."""
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=10)
    )
    return dist.PrefixStore(f"watchdog/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def doing(what: str) -> None:
    """Record what this rank begins to do: "batch 3 of epoch 0: reading". Where it hangs, the others log it."""
    if _watchdog is not None:
        _watchdog.doing(what)


def started_up() -> None:
    """The start-up of a run is over: from now on the short time-out holds."""
    if _watchdog is not None:
        _watchdog.started()


def exchanging() -> AbstractContextManager[None]:
    """Context in which this rank waits for the others, also through its device. All ranks must enter the same ones."""
    return nullcontext() if _watchdog is None else _watchdog.exchanging()


def use_gpu(number: int, named_by: str) -> torch.device:
    """Make a GPU the current one of this process and return it. A context on another GPU would cost memory there.

    named_by: what named it, for the error. Raises ConfigError for a number without a GPU.
    """
    count = torch.cuda.device_count()
    if not 0 <= number < count:
        found = "1 GPU" if count == 1 else f"{count} GPUs"
        raise ConfigError(f"{named_by} {number}: {found} found, counted from 0")
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def shutdown() -> None:
    """Leave the process group, if there is one."""
    global _watchdog
    if _watchdog is not None:
        _watchdog.stop()
        _watchdog = None
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
        with exchanging():
            dist.barrier()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all ranks, on the device of the argument. The argument is not changed.

    The ranks may hold it on different devices: a metric that saw no batch is still on the CPU. So the device of the
    exchange depends on the group alone. Otherwise ranks would wait in different collectives.
    """
    if not is_distributed():
        return tensor
    with exchanging():
        total = tensor.to(_exchange_device(), copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)


def all_reduce_max(value: int) -> int:
    """The largest `value` of all ranks."""
    if not is_distributed():
        return value
    with exchanging():
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
    with exchanging():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: T) -> list[T] | None:
    """On rank 0 the `value` of every rank, in rank order; None on the other ranks. Values must be picklable."""
    if not is_distributed():
        return [value]
    values: list[Any] | None = [None] * world_size() if is_main() else None
    with exchanging():
        dist.gather_object(value, values, dst=0)
    return values


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Raise ConfigError on every rank, naming what differs, unless all ranks have the facts of rank 0.

    facts: printable values by name. Every rank must call it.
    """
    every = gather_objects((socket.gethostname(), {name: repr(value) for name, value in facts.items()}))
    line = broadcast_object(_disagreement(every or []))
    if line:
        raise ConfigError(line)


def _disagreement(every: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """The first rank whose facts are not those of rank 0 and up to five of them, "" where all agree."""
    for other, (host, facts) in enumerate(every):
        first = every[0][1]
        names = [name for name in {**first, **facts} if first.get(name) != facts.get(name)]
        if names:
            shown = [f"{name} is {facts.get(name)}, not {first.get(name)}" for name in names[:5]]
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            return f"rank {other} on {host} differs from rank 0 on {every[0][0]}: {'; '.join(shown)}{more}"
    return ""


def wrap(model: nn.Module, device: torch.device, shards: Sequence[nn.Module] | None = None) -> nn.Module:
    """The model with gradients averaged over all ranks and with the weights of rank 0. One process returns `model`.

    shards: parts of the model for FSDP, which changes the model itself: every rank keeps a share of each weight, and
    all of them only while they are used. A part is gathered around its forward and, where it has one, its method `run`;
    all other weights are gathered for the whole forward. Parameters become DTensors, so an optimizer must be built
    later. None for DDP. Raises ConfigError with shards for a parameter without a dimension.
    """
    if not is_distributed():
        return model
    if shards is not None:
        with exchanging():
            return _Sharded(model, device, shards)
    device_ids = [device.index] if device.type == "cuda" else None
    # Some configs leave parameters out of the loss (a pooler, a frozen text side), the same ones in every step. A
    # static graph finds them in the first step and keeps the order of the buckets.
    with warnings.catch_warnings(), exchanging():
        warnings.simplefilter("ignore", FutureWarning)  # not every PyTorch has the new name of broadcast_buffers
        return _Replica(model, device_ids, broadcast_buffers=False, static_graph=True, gradient_as_bucket_view=True)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside what `wrap` returned."""
    return model.module if isinstance(model, DistributedDataParallel | _Sharded) else model


@contextmanager
def gradient_exchange(model: nn.Module, now: bool) -> Iterator[None]:
    """Context of forward and backward. now: average the gradients over ranks, with those that have accumulated."""
    if not isinstance(model, _Replica | _Sharded):
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
        return self.no_sync() if skip else exchanging()


# ---------------------------------------------------------------------------------------------- FSDP


class _Sharded(nn.Module):
    """A model of which this rank keeps a share."""

    def __init__(self, module: nn.Module, device: torch.device, shards: Sequence[nn.Module]) -> None:
        # Here, because these imports take seconds.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        super().__init__()
        for name, parameter in module.named_parameters():
            if parameter.dim() == 0:
                raise ConfigError(f"TRAIN.FSDP: the parameter {name} is a single number, which FSDP cannot shard")
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor, src=0)
        mesh = init_device_mesh(device.type, (world_size(),))
        for part in shards:
            fully_shard(part, mesh=mesh)
            if hasattr(part, "run"):
                register_fsdp_forward_method(part, "run")
        fully_shard(module, mesh=mesh)
        self.module: Any = module

    def forward(self, *args: Any) -> Any:
        return self.module(*args)

    def exchange(self, now: bool) -> AbstractContextManager[None]:
        """See `gradient_exchange`. Forward and backward gather weights, so they wait for other ranks in any case."""
        self.module.set_requires_gradient_sync(now)
        return exchanging()


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank has only its share of the values: a DTensor of FSDP."""
    return hasattr(tensor, "to_local")


def local_share(tensor: Tensor) -> Tensor:
    """The values of a tensor that this rank has, without a copy: all of them where it is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def share_like(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor`, which is the same on all ranks, sharded as `like` is. Unchanged where `like` is not sharded."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]


def whole(value: Any) -> Any:
    """`value` with the sharded tensors in its dicts and lists gathered: rank 0 has them on the CPU, others have None.

    Every rank must call it.
    """
    if isinstance(value, dict):
        return {key: whole(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [whole(entry) for entry in value]
    if not isinstance(value, Tensor) or not hasattr(value, "full_tensor"):
        return value
    with exchanging():
        full = value.full_tensor()
        return full.cpu() if is_main() else None


def whole_state(module: nn.Module) -> dict[str, Any]:
    """The state dict with what `whole` returns. Tied weights stay the same tensor. Every rank must call it."""
    tied = {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)}
    state, known = module.state_dict(), dict[Any, Any]()
    for name, value in state.items():
        if is_sharded(value):
            owner = tied.get(name, name)
            if owner not in known:
                known[owner] = whole(value)
            state[name] = known[owner]
    return state


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Context in which every rank has all weights, so that ranks may call the model a different number of times.

    Without effect on a model that is not sharded. Every rank must enter it.
    """
    sharded: list[Any] = [part for part in model.modules() if hasattr(part, "set_reshard_after_forward")]
    with exchanging() if sharded else nullcontext():
        for part in sharded:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
    try:
        yield
    finally:
        for part in sharded:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)  # FSDP's default


def _exchange_device() -> torch.device:
    if "nccl" in str(dist.get_backend_config()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")

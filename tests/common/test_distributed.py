"""Two gloo processes on the CPU; the same calls on one process."""

import os
import socket

import pytest
import torch
from torch.multiprocessing import spawn

from common import distributed
from common.errors import ConfigError
from common.metrics import Accuracy, Mean, MetricGroup
from common.train.launch import free_port


def run_on_two(function, *args) -> None:
    """Run `function(rank, *args)` in two processes that form a group; what raises there raises here."""
    spawn(_in_group, args=(function, free_port(), args), nprocs=2)


def _in_group(rank: int, function, port: int, args) -> None:
    os.environ.update(
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    )
    torch.set_num_threads(1)
    assert distributed.init_from_env(cuda=False)
    try:
        function(rank, *args)
    finally:
        distributed.shutdown()


def _collectives(rank: int) -> None:
    assert (distributed.rank(), distributed.local_rank(), distributed.world_size()) == (rank, rank, 2)
    assert distributed.is_main() == (rank == 0)
    mine = torch.tensor([1.0, rank])
    assert distributed.all_reduce_sum(mine).tolist() == [2, 1]
    assert mine.tolist() == [1, rank]
    assert distributed.broadcast_object({"from": rank}) == {"from": 0}
    gathered = distributed.gather_objects(("rank", rank))
    assert gathered == ([("rank", 0), ("rank", 1)] if rank == 0 else None)
    distributed.barrier()


def _metrics(rank: int) -> None:
    """Rank 1 never has a loss: it must take part in the exchange all the same."""
    group = MetricGroup([Accuracy(), Mean("loss"), Mean("never")])
    logits = torch.eye(2)
    group.update({"label_logits": logits, "label": torch.tensor([0, 1 - rank])})
    if rank == 0:
        group.update({"label_logits": logits, "label": torch.tensor([0, 1]), "loss": torch.tensor(4.0)})
    values = group.compute()
    assert values["Acc"] == 5 / 6
    assert values["loss"] == 4
    assert values["never"] != values["never"]

    single = Mean("loss")
    if rank == 0:
        single.update({"loss": torch.tensor(4.0)})
    assert single.compute() == 4

    state = group.state_dict()  # of all ranks; going on from it counts it once
    assert state["Acc"] == {"sum": 5, "count": 6}
    group.load_state_dict(state)
    assert group.compute()["Acc"] == 5 / 6


def _agreement(rank: int) -> None:
    same = {"torch": "2.14", "TRAIN.LR": 0.1, "samples": [3, 4]}
    distributed.check_agreement(same)
    with pytest.raises(ConfigError) as error:
        distributed.check_agreement({**same, "samples": [3, 4 + rank], **({"own": 1} if rank else {})})
    host = socket.gethostname()
    expected = f"rank 1 on {host} differs from rank 0 on {host}: samples is [3, 5], not [3, 4]; own is 1, not None"
    assert str(error.value) == expected
    with pytest.raises(ConfigError, match=r"; key4 is 1, not 0 and 3 more$"):
        distributed.check_agreement({f"key{i}": rank for i in range(8)})


@pytest.mark.parametrize("function", [_collectives, _metrics, _agreement])
def test_two_processes(function):
    run_on_two(function)


def test_more_processes_than_gpus_is_an_error_of_one_line(monkeypatch):
    """Before the group exists: plain torchrun starts as many processes as it is told to."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="^LOCAL_RANK 1: 1 GPU found, counted from 0$"):
        distributed.init_from_env(cuda=True)


def test_one_process(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert not distributed.init_from_env()
    assert (distributed.rank(), distributed.local_rank(), distributed.world_size()) == (0, 0, 1)
    assert distributed.is_main()
    distributed.barrier()
    assert distributed.all_reduce_sum(torch.ones(2)).tolist() == [1, 1]
    assert distributed.broadcast_object("x") == "x"
    distributed.check_agreement({"a": 1})
    distributed.doing("nothing that anybody waits for")
    distributed.started_up()
    assert distributed.gather_objects("x") == ["x"]
    distributed.shutdown()

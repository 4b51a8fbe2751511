"""Local processes of an evaluation, on the CPU with gloo."""

import os
import time
from pathlib import Path

import pytest
import torch

from common import distributed
from common.train.launch import run_local, visible_devices


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
        with pytest.raises(ValueError, match="--gpus 4: there are 4 GPUs"):
            visible_devices([0, 4])

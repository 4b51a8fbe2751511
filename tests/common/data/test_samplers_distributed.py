"""Batches of one orientation on two ranks: the original's RefCOCO+ training could wait for ever (original 10.14).

Its ranks grouped their own samples, so one had a batch more than the other and waited in the gradient exchange for a
process that was already validating. Here global batches are dealt out.
"""

from __future__ import annotations

import faulthandler
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common import distributed
from common.data.dataset import TaskDataset
from common.data.loader import BatchLoader
from common.data.sample import Sample
from common.data.samplers import EpochSampler, grouped_batches
from common.metrics import MetricGroup
from refcoco.metrics import ClsAccuracy, ClsPosAccuracy, RefAccuracy
from tests.common.test_distributed import run_on_two

BATCH, EPOCHS, WORLD = 4, 6, 2
DEADLOCK = 180  # seconds after which a process that still waits ends with an error


class UserImages(TaskDataset):
    """`wide` landscape images, then `upright` portrait ones, with two candidates each."""

    def __init__(self, wide: int, upright: int) -> None:
        self.groups = [0] * wide + [1] * upright

    def __len__(self) -> int:
        return len(self.groups)

    def sample(self, index: int, rng: random.Random) -> Sample:
        size = (40.0, 30.0) if self.groups[index] == 0 else (30.0, 40.0)
        return Sample(
            id=index,
            im_info=torch.tensor([*size, 1.0, 1.0]),
            boxes=torch.rand(2, 4, generator=torch.Generator().manual_seed(index)),
            text_ids=torch.tensor([1, 2]),
            segment_ids=torch.zeros(2, dtype=torch.int64),
        )

    @property
    def group_ids(self) -> Sequence[int]:
        return self.groups


def loader(dataset: UserImages, rank: int) -> BatchLoader:
    place = {"rank": rank, "world": WORLD}
    return BatchLoader(dataset, BATCH, shuffle=True, training=True, aspect_grouping=True, num_workers=1, **place)


def own_part(sampler: EpochSampler, epoch: int) -> Tensor:
    """The contiguous part of the padded order that a rank would take by itself."""
    return sampler.part(epoch, sampler.rank * sampler.count, (sampler.rank + 1) * sampler.count)


def naive_counts(dataset: UserImages, epoch: int) -> list[int]:
    """Batches of each rank when it groups its own part of the samples."""
    groups = torch.tensor(dataset.groups)
    parts = [own_part(EpochSampler(len(dataset), True, rank, WORLD), epoch) for rank in range(WORLD)]
    return [len(grouped_batches(part, groups, BATCH)) for part in parts]


def train(rank: int, wide: int, upright: int) -> list[tuple[list[list[int]], list[list[int]]]]:
    """Some epochs of a model whose gradients are exchanged in every batch.

    Returns by epoch the sample ids of both ranks' batches, on rank 0.
    """
    dataset = UserImages(wide, upright)
    batches = loader(dataset, rank)
    model = DistributedDataParallel(nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    for epoch in range(EPOCHS):
        mine = []
        for batch in batches.epoch(epoch):
            assert len({dataset.groups[i] for i in batch.ids}) == 1  # one orientation
            model(batch.boxes).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            mine.append(batch.ids)
        assert len(mine) == len(batches)
        seen.append(distributed.gather_objects(mine))
    weights = distributed.gather_objects(model.module.weight.detach())
    assert weights is None or torch.equal(*weights)
    return seen


def _even(rank: int) -> None:
    """27 and 17 images are 7 and 5 batches of 4: six for each rank, and each sample once."""
    for parts in train(rank, 27, 17):
        if rank == 0:
            assert [len(part) for part in parts] == [6, 6]
            assert sorted(i for part in parts for ids in part for i in ids) == list(range(44))


def _uneven(rank: int) -> None:
    """25 and 15 images are 7 and 4 batches: the first of the 11 is dealt to the second rank again."""
    for parts in train(rank, 25, 15):
        if rank == 0:
            assert [len(part) for part in parts] == [6, 6]
            ids = [i for part in parts for batch in part for i in batch]
            assert set(ids) == set(range(40))
            assert parts[1][-1] == parts[0][0]  # what padding repeats
            assert len(ids) == 40 + len(parts[0][0])


def _metrics(rank: int) -> None:
    """Rank 1 sees no positive candidate and no batch at all of one metric (original 3.15)."""
    positives, group = ClsPosAccuracy(), MetricGroup([RefAccuracy(), ClsAccuracy(), ClsPosAccuracy("Pos")])
    values = {"label_logits": torch.tensor([[1.0, -1.0]]), "label": torch.tensor([[float(rank == 0), 0.0]])}
    for metric in (positives, group):
        metric.update(values)
    assert float(positives.state[1]) == (1 if rank == 0 else 0)
    assert positives.compute() == 1
    assert group.compute() == {"RefAcc": 0.5, "ClsAcc": 0.75, "Pos": 1.0}
    nobody = ClsPosAccuracy()
    assert nobody.compute() != nobody.compute()  # NaN, on both


def _on_each_rank(rank: int) -> None:
    for part in (_even, _uneven, _metrics):
        faulthandler.dump_traceback_later(DEADLOCK, exit=True)
        part(rank)
    faulthandler.cancel_dump_traceback_later()


def test_two_ranks_come_to_an_end():
    """In one group, since starting processes takes longer than everything they do."""
    run_on_two(_on_each_rank)


@pytest.mark.parametrize(("wide", "upright"), [(27, 17), (25, 15)])
def test_grouping_on_each_rank_would_not_have(wide, upright):
    """The same samples in the same order: what the original did gives the ranks unequal numbers of batches."""
    dataset = UserImages(wide, upright)
    counts = [naive_counts(dataset, epoch) for epoch in range(EPOCHS)]
    assert any(first != second for first, second in counts)
    ours = [loader(dataset, rank).batch_sampler for rank in range(WORLD)]
    for epoch in range(EPOCHS):
        dealt = [[sampler.batch(epoch, i) for i in range(len(sampler))] for sampler in ours]
        assert len({len(batches) for batches in dealt} | {len(sampler) for sampler in ours}) == 1


def test_the_official_numbers():
    """120,191 training expressions, 74 % wide, four ranks of batches of 4, as far as nobody waits for anybody."""
    length, world = 120_191, 4
    groups: Tensor = (torch.rand(length, generator=torch.Generator().manual_seed(0)) > 0.74).long()
    unequal = 0
    for epoch in range(2):
        parts = [own_part(EpochSampler(length, True, rank, world), epoch) for rank in range(world)]
        naive = {sum(-(-int((groups[part] == g).sum()) // BATCH) for g in (0, 1)) for part in parts}
        unequal += len(naive) > 1
        batches = grouped_batches(EpochSampler(length, True).part(epoch, 0, length), groups, BATCH)
        dealt = -(-len(batches) // world)
        assert dealt * world - len(batches) < world and sum(map(len, batches)) == length
    assert unequal > 0

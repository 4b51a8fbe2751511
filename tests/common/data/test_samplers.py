import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from common.data.permutation import sample_seed
from common.data.samplers import (
    BatchSampler,
    EpochSampler,
    grouped_batches,
    image_batches,
)
from common.errors import DataError


def permutation(length: int, epoch: int) -> list[int]:
    return torch.randperm(length, generator=torch.Generator().manual_seed(epoch)).tolist()


def lists(parts: list[torch.Tensor]) -> list[list[int]]:
    return [batch.tolist() for batch in parts]


def batches(sampler: BatchSampler, epoch: int) -> list[list[int]]:
    """The batches of an epoch."""
    return [sampler.batch(epoch, i).tolist() for i in range(len(sampler))]


def test_the_default_order_is_seeded_by_the_epoch():
    sampler = EpochSampler(10, shuffle=True)
    assert sampler.part(3, 0, 10).tolist() == permutation(10, 3)
    assert EpochSampler(4, shuffle=False).part(5, 0, 4).tolist() == [0, 1, 2, 3]


def test_ranks_take_contiguous_parts_of_the_wrapped_order():
    order = permutation(10, 0)
    parts = [sum(batches(BatchSampler(EpochSampler(10, True, rank, 4), 2), 0), []) for rank in range(4)]
    assert sum(parts, []) == order + order[:2]
    assert {len(part) for part in parts} == {3}
    # The order of a dataset smaller than the world repeats.
    small = [batches(BatchSampler(EpochSampler(2, False, rank, 5), 2), 0) for rank in range(5)]
    assert small == [[[0]], [[1]], [[0]], [[1]], [[0]]]


def test_evaluation_sees_each_sample_once():
    """In the batches of one process, so that padding and rounding are the same however many there are."""
    for length, sizes in ((1, [0, 0, 1]), (7, [1, 1, 2]), (8, [1, 1, 2]), (12, [2, 2, 2])):
        samplers = [BatchSampler(EpochSampler(length, False, rank, 3, pad=False), 2) for rank in range(3)]
        single = batches(BatchSampler(EpochSampler(length, False, pad=False), 2), 0)
        assert sum((batches(s, 0) for s in samplers), []) == single
        assert sum(single, []) == list(range(length))
        assert [len(s) for s in samplers] == sizes


def test_bad_arguments_are_refused():
    with pytest.raises(DataError, match="no samples"):
        EpochSampler(0, True)
    with pytest.raises(ValueError, match="rank 2"):
        EpochSampler(4, True, rank=2, world=2)
    with pytest.raises(ValueError, match="batch size 0"):
        BatchSampler(EpochSampler(4, True), 0)
    with pytest.raises(ValueError, match="3 group ids"):
        BatchSampler(EpochSampler(4, True), 2, group_ids=[0, 1, 0])


def test_groups_are_kept_apart_and_ordered_by_their_first_sample():
    order = torch.tensor([4, 0, 1, 5, 2, 3])
    groups = torch.tensor([0, 1, 0, 0, 1, 0])
    assert lists(grouped_batches(order, groups, 2)) == [[4, 1], [0, 5], [2, 3]]
    assert lists(grouped_batches(order, groups, 3)) == [[4, 1], [0, 5, 2], [3]]


def test_with_image_keys_samples_of_an_image_follow_each_other():
    image_keys = torch.tensor([7, 3, 7, 3, 9, 7])
    assert EpochSampler(6, False, image_keys=image_keys).part(0, 0, 6).tolist() == [0, 2, 5, 1, 3, 4]
    for epoch in range(3):
        order = EpochSampler(6, True, image_keys=image_keys).part(epoch, 0, 6)
        assert sorted(order.tolist()) == list(range(6))
        assert len(image_keys[order].unique_consecutive()) == 3
    with pytest.raises(ValueError, match="5 image keys for a dataset of 6"):
        EpochSampler(6, True, image_keys=[0] * 5)


def test_in_evaluation_a_batch_has_images_with_all_of_their_samples():
    images = torch.tensor([0] * 3 + [1] * 40 + [2] * 2 + [3])
    order = torch.arange(46)
    assert [len(b) for b in image_batches(order, images, 2)] == [3, 16, 16, 10, 1]  # 8 + 2 about two images
    assert [len(b) for b in image_batches(order, images, 1)] == [3, *[8] * 5, 2, 1]
    assert torch.cat(image_batches(order, images, 2)).tolist() == order.tolist()
    mixed = [0, 1, 0, 2, 1, 0, 3, 2, 0, 0, 4]
    single = batches(BatchSampler(EpochSampler(11, False, pad=False, image_keys=mixed), 2), 0)
    assert single == [[0, 2, 5, 8, 9, 1, 4], [3, 7, 6], [10]]
    world = [BatchSampler(EpochSampler(11, False, rank, 2, pad=False, image_keys=mixed), 2) for rank in range(2)]
    assert [batch for sampler in world for batch in batches(sampler, 0)] == single


def test_in_training_samples_of_an_image_draw_alike_and_batches_keep_their_size():
    sampler = BatchSampler(EpochSampler(7, True, image_keys=[5, 6, 5, 6, 5, 8, 8]), 3, base_seed=4)
    drawn = {index: seed for batch in sampler for index, seed in batch}
    assert len({drawn[i] for i in (0, 2, 4)}) == len({drawn[i] for i in (1, 3)}) == 1 and len(set(drawn.values())) == 3
    assert [len(batch) for batch in sampler] == [3, 3, 1]


def test_with_groups_all_ranks_have_equally_many_batches():
    groups = [0] * 7 + [1] * 4
    single = batches(BatchSampler(EpochSampler(11, True), 2, groups), 1)
    assert len(single) == 6
    world = [BatchSampler(EpochSampler(11, True, rank, 4), 2, groups) for rank in range(4)]
    parts = [batches(s, 1) for s in world]
    assert [len(s) for s in world] == [2, 2, 2, 2]
    assert [parts[i % 4][i // 4] for i in range(8)] == single + single[:2]
    for epoch in range(4):
        assert {len(batches(s, epoch)) for s in world} == {len(world[0])}


def test_iteration_goes_on_from_the_position():
    sampler = BatchSampler(EpochSampler(10, True), 3, base_seed=5)
    sampler.set_position(2)
    whole = list(sampler)
    assert [index for batch in whole for index, _ in batch] == permutation(10, 2)
    assert all(seed == sample_seed(5, 2, index) for batch in whole for index, seed in batch)
    sampler.set_position(2, 3)
    assert list(sampler) == whole[3:] and len(sampler) == 4
    with pytest.raises(ValueError, match="batch 5"):
        sampler.set_position(0, 5)


def test_an_iterator_keeps_the_position_it_was_made_at():
    sampler = BatchSampler(EpochSampler(6, True), 2)
    first = iter(sampler)
    sampler.set_position(1)
    assert [index for batch in first for index, _ in batch] == permutation(6, 0)


class Pairs(Dataset):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        return key


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_hands_the_pairs_to_the_dataset(workers):
    sampler = BatchSampler(EpochSampler(7, True), 3, base_seed=9)
    loader = DataLoader(Pairs(), batch_sampler=sampler, num_workers=workers, collate_fn=list)
    sampler.set_position(4, 1)
    assert list(loader) == list(sampler)
    assert len(loader) == 3


def test_huge_datasets_are_shuffled_without_an_order_in_memory(monkeypatch):
    monkeypatch.setattr(torch, "randperm", None)
    sampler = BatchSampler(EpochSampler(3_000_000_000, True, rank=1, world=4), 8)
    first = sampler.batch(0, 0).tolist()
    assert len({*first, *sampler.batch(0, 1).tolist()}) == 16 and max(first) < 3_000_000_000
    assert first != sampler.batch(1, 0).tolist() and len(sampler) == 93_750_000


def test_small_and_huge_datasets_deal_in_the_same_way(monkeypatch):
    monkeypatch.setattr("common.data.samplers.LARGE", 10)
    world = [BatchSampler(EpochSampler(11, True, rank, 2), 4) for rank in range(2)]
    seen = [i for s in world for batch in batches(s, 3) for i in batch]
    assert sorted(set(seen)) == list(range(11)) and len(seen) == 12

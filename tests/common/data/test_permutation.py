"""Permutations of a dataset and seeds of its samples."""

import pytest
import torch

from common.data.permutation import sample_seed, scattered, together


def test_sample_seeds_are_fixed_and_differ():
    assert sample_seed(12345, 0, 0) == 12248531701917948781
    assert sample_seed(-1, 0, 0) == sample_seed(-1, 0, 0) != sample_seed(0, 0, 0)
    seeds = {sample_seed(b, e, i) for b in range(3) for e in range(10) for i in range(1000)}
    assert len(seeds) == 30_000
    assert all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_a_permutation_that_is_not_written_down(length):
    positions = torch.arange(length)
    for seed in range(3):
        assert scattered(positions, length, seed).sort().values.tolist() == list(range(length))
    first, second = (scattered(positions, length, seed) for seed in (0, 1))
    if length > 60:
        assert (first == second).float().mean() < 0.1 and (first == positions).float().mean() < 0.1
        # No order is left: neighbours land as far apart as chance would have it (a third of the length on average).
        assert 0.25 < float((first[1:] - first[:-1]).abs().double().mean()) / length < 0.42
    part = torch.tensor([length - 1, 0])
    assert scattered(part, length, 1).tolist() == second[part].tolist()


def test_samples_of_an_image_follow_each_other_from_the_first_on():
    image_keys = torch.tensor([7, 3, 7, 3, 9, 7])
    assert together(torch.tensor([4, 1, 0, 2, 3, 5]), image_keys).tolist() == [4, 1, 3, 0, 2, 5]

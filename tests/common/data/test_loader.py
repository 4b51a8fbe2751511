"""The stream of batches depends on seed and position alone, not on workers, and it draws from no global generator."""

import random
import subprocess

import pytest
import torch
from torch.utils.data import DataLoader

from common.config import load_config
from common.data.dataset import TaskDataset
from common.data.loader import BatchLoader, MultiLoader, build_loader, ignore_signals_of_others
from common.data.sample import Sample


class Numbers(TaskDataset):
    """A sample is its index and what its own generator gives; the global generators are drawn from to no effect."""

    def __init__(self, length: int = 11) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, rng: random.Random) -> Sample:
        return Sample(
            id=index,
            im_info=torch.tensor([index, rng.random(), rng.random(), 0.0]),
            boxes=torch.zeros(1 + index % 3, 4),
            text_ids=torch.tensor([index]),
            segment_ids=torch.tensor([0]),
        )

    @property
    def group_ids(self) -> list[int]:
        return [i % 2 for i in range(self.length)]


def loader(workers: int = 0, **changes) -> BatchLoader:
    settings = {"shuffle": True, "training": True, "num_workers": workers, "base_seed": 4} | changes
    return BatchLoader(Numbers(), 3, **settings)


def stream(batches) -> list[tuple[list, list]]:
    return [(batch.ids, batch.im_info.tolist()) for batch in batches]


@pytest.mark.parametrize("start", [0, 2, 4])
@pytest.mark.parametrize("grouped", [False, True])
def test_workers_do_not_change_the_stream(start, grouped):
    one, two = loader(0, aspect_grouping=grouped), loader(2, aspect_grouping=grouped)
    for epoch in (0, 3):
        got = stream(two.epoch(epoch, start))
        assert got == stream(one.epoch(epoch, start)) and len(got) == 4 - start
    assert two._loader.num_workers == 2


def test_from_the_middle_is_the_rest_of_the_whole():
    whole = stream(loader().epoch(2))
    assert stream(loader().epoch(2, 3)) == whole[3:]
    assert sorted(i for ids, _ in whole for i in ids) == list(range(11))


def test_epochs_and_seeds_differ():
    first = stream(loader().epoch(0))
    assert stream(loader().epoch(0)) == first
    assert stream(loader().epoch(1)) != first
    other = stream(loader(base_seed=5).epoch(0))
    assert [ids for ids, _ in other] == [ids for ids, _ in first] and other != first  # same order, other draws


def test_an_abandoned_epoch_leaves_nothing_behind():
    """As after MAX_STEPS; workers persist and have run ahead."""
    for workers in (0, 2):
        data = loader(workers)
        next(iter(data.epoch(0)))
        assert stream(data.epoch(1, 1)) == stream(loader().epoch(1, 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_are_left_alone(workers):
    torch.manual_seed(1)
    random.seed(1)
    want = torch.rand(1), random.random()
    torch.manual_seed(1)
    random.seed(1)
    data = loader(workers)
    for epoch in range(2):
        assert len(stream(data.epoch(epoch))) == 4
    assert (torch.rand(1), random.random()) == want


def test_evaluation_gives_each_sample_once_over_ranks():
    """Original 3.19."""
    parts = [loader(shuffle=False, training=False, rank=r, world=2) for r in range(2)]
    ids = [[i for batch in part for i in batch.ids] for part in parts]
    assert ids[0] + ids[1] == list(range(11))
    lengths = {len(loader(rank=r, world=2)) for r in range(2)}
    assert lengths == {2}


def test_from_a_config():
    overrides = {
        "TRAIN.BATCH_IMAGES": 2,
        "VAL.BATCH_IMAGES": 3,
        "TEST.BATCH_IMAGES": 4,
        "TEST.SHUFFLE": True,
        "TRAIN.ASPECT_GROUPING": True,
        "NUM_WORKERS_PER_GPU": 0,
    }
    cfg = load_config("vqa", overrides=overrides)
    train, val, test = (build_loader(Numbers(), cfg, split, base_seed=9) for split in ("train", "val", "test"))
    assert [loader.batch_sampler.batch_size for loader in (train, val, test)] == [2, 3, 4]
    assert train.batch_sampler.group_ids is not None and val.batch_sampler.group_ids is None
    assert train.batch_sampler.base_seed == 9
    assert [i for batch in test for i in batch.ids] == list(range(11))  # never shuffled
    assert train.batch_sampler.sampler.pad and not val.batch_sampler.sampler.pad


def joined(workers: int = 0, **changes) -> MultiLoader:
    """Epochs of 4 batches, beside datasets of 5 in batches of 2 and of 3 one by one."""
    settings = {"training": True, "num_workers": workers, "base_seed": 4} | changes
    return MultiLoader(
        BatchLoader(Numbers(7), 2, **settings),
        [BatchLoader(Numbers(5), 2, **settings), BatchLoader(Numbers(3), 1, **settings)],
    )


def joint_stream(batches) -> list[list[tuple[list, list]]]:
    return [stream([batch, *batch.auxiliary]) for batch in batches]


class TestSeveralInStep:
    def test_the_others_go_round(self):
        loader = joined()
        rounds = [[[i for ids, _ in row for i in ids] for row in joint_stream(loader.epoch(e))] for e in range(2)]
        assert rounds == [
            [[0, 1, 0, 1, 0], [2, 3, 2, 3, 1], [4, 5, 4, 2], [6, 0, 1, 0]],
            [[0, 1, 2, 3, 1], [2, 3, 4, 2], [4, 5, 0, 1, 0], [6, 2, 3, 1]],
        ]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_from_the_middle_is_the_rest_of_the_whole(self, workers):
        for epoch in (0, 2):
            whole = joint_stream(joined(shuffle=True).epoch(epoch))
            for start in range(5):
                assert joint_stream(joined(workers, shuffle=True).epoch(epoch, start)) == whole[start:]

    def test_each_round_has_its_own_order_and_draws(self):
        """The 5 samples of the first other dataset take 3 batches, so its second round starts in the first epoch."""
        loader = joined(shuffle=True)
        texts = [row[1] for epoch in range(2) for row in joint_stream(loader.epoch(epoch))]
        assert texts[:3] != texts[3:6]
        assert [i for ids, _ in texts[:3] for i in ids] != [i for ids, _ in texts[3:6] for i in ids]

    def test_an_abandoned_epoch_leaves_nothing_behind(self):
        loader = joined(1, shuffle=True)
        next(iter(loader.epoch(0)))
        assert joint_stream(loader.epoch(1, 1)) == joint_stream(joined(shuffle=True).epoch(1, 1))

    def test_from_a_config(self):
        datasets = [{"DATASET": "conceptual_captions"}, {"DATASET": "general_corpus"}]
        sizes = {f"{split}.BATCH_IMAGES": [3, 2] for split in ("TRAIN", "VAL", "TEST")}
        cfg = load_config("pretrain", overrides={"DATASET": datasets, "NUM_WORKERS_PER_GPU": 0, **sizes})
        data = [Numbers(11), Numbers(2)]
        for rank in range(3):
            val = build_loader(data, cfg, "val", rank=rank, world=3)
            batches = list(val)
            assert len(batches) == len(val) and all(len(b.auxiliary[0]) == 1 for b in batches)
        train = build_loader(data, cfg, "train", base_seed=9)
        batch = next(iter(train))
        assert (len(batch), len(batch.auxiliary[0]), batch.num_samples) == (3, 2, 5)
        assert train.base_seed == train.others[0].base_seed == 9
        train.base_seed = 2
        assert train.master.base_seed == train.others[0].base_seed == 2
        assert joint_stream(val) == joint_stream(val)  # the same text in each validation
        moved = batch.to("meta")
        assert moved.auxiliary[0].text_ids.device.type == "meta" == moved.boxes.device.type


class TestSignals:
    """Of a worker: what comes from its parent ends it, what comes from elsewhere does not."""

    @pytest.fixture
    def iterator(self):
        batches = iter(DataLoader(range(1000), num_workers=1, worker_init_fn=ignore_signals_of_others))
        next(batches)
        return batches

    def test_from_elsewhere(self, iterator):
        pid = iterator._workers[0].pid
        for kind in ("TERM", "INT", "HUP", "USR1"):
            subprocess.run(["sh", "-c", f"kill -{kind} {pid}"], check=True)
        assert sum(1 for _ in iterator) == 999

    def test_from_the_parent(self, iterator):
        worker = iterator._workers[0]
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == 0

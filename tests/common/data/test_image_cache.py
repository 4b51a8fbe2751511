"""Samples of a batch that show one image read and resize it once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from common.data.dataset import TaskDataset
from common.data.image_cache import ImageCache
from common.data.loader import BatchLoader
from common.data.sample import Sample
from common.data.transforms import Transform
from common.files.images import load_image

FLIPS = Transform((6, 8), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), flip_prob=0.5)


class Questions(TaskDataset):
    """Three questions about each of two images. clone: their pixels are copies."""

    def __init__(self, folder: Path, clone: bool = False) -> None:
        self.clone = clone
        self.paths = [str(folder / f"{i}.png") for i in range(2)]
        for i, path in enumerate(self.paths):
            Image.new("RGB", (8, 6), (50 * i, 7, 9)).save(path)

    def __len__(self) -> int:
        return 6

    def sample(self, index: int, rng: random.Random) -> Sample:
        path = self.paths[index % 2]
        image = self.image_cache.image(path)
        state = FLIPS(None, torch.zeros(1, 4), torch.tensor([8.0, 6, 1, 1]), None, rng)
        pixels = self.image_cache.pixels(path, image, state.flipped, FLIPS)
        text = torch.tensor([index])
        return Sample(
            index,
            state.im_info,
            state.boxes,
            text,
            text,
            image=pixels.clone() if self.clone else pixels,
            image_key=(path, state.flipped),
        )

    @property
    def image_keys(self) -> list[int]:
        return [0, 1] * 3


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    paths: list[str] = []
    monkeypatch.setattr("common.data.image_cache.load_image", lambda path: paths.append(path) or load_image(path))
    return paths


@pytest.mark.parametrize("clone", [False, True])
def test_a_batch_has_each_image_once(tmp_path: Path, opened: list[str], clone: bool) -> None:
    dataset = Questions(tmp_path, clone)
    (batch,) = BatchLoader(dataset, 6, training=True, group_images=True)
    assert batch.ids == [0, 2, 4, 1, 3, 5] and batch.image_row.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(batch.image) == 2 and opened == dataset.paths


def test_both_orientations_of_an_image_have_pixels_of_their_own(tmp_path: Path, opened: list[str]) -> None:
    dataset = Questions(tmp_path)
    flips = {random.Random(seed).random() < 0.5: seed for seed in range(9)}
    same, other, mirrored = dataset.__getitems__([(0, flips[False]), (2, flips[False]), (4, flips[True])])
    assert same.image is other.image and same.image_key == other.image_key
    assert mirrored.image_key != same.image_key and torch.equal(mirrored.image, same.image.flip(2))
    assert opened == dataset.paths[:1]


def test_nothing_is_kept_between_batches(tmp_path: Path, opened: list[str]) -> None:
    dataset, cache = Questions(tmp_path), ImageCache()
    with cache.keeping():
        image = cache.image(dataset.paths[0])
        assert cache.image(dataset.paths[0]) is image
        pixels = cache.pixels(dataset.paths[0], image, False, FLIPS)
        assert cache.pixels(dataset.paths[0], image, False, FLIPS) is pixels
    assert cache.image(dataset.paths[0]) is not image and len(opened) == 2
    assert cache.pixels(dataset.paths[0], image, False, FLIPS) is not pixels

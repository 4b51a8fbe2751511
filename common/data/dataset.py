"""The base class of every task's dataset."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

from torch.utils.data import Dataset

from common.data.image_cache import ImageCache
from common.data.sample import Sample


class TaskDataset(Dataset[Sample]):
    """Samples by index. All random draws of a sample come from the generator that is passed in."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sample(self, index: int, rng: random.Random) -> Sample:
        """Returns sample number `index`. Its random draws (flip, masking, ...) come from `rng` alone."""

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """key: (index, seed) as the samplers of common.data.samplers yield it."""
        index, seed = key
        return self.sample(index, random.Random(seed))

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Sample]:
        """Returns the samples of a batch. An image of `image_cache` is read once, and resized once an orientation."""
        with self.image_cache.keeping():
            return [self[key] for key in keys]

    @cached_property
    def image_cache(self) -> ImageCache:
        """For the images of samples that may share their pixels."""
        return ImageCache()

    @property
    def image_keys(self) -> Sequence[int] | None:
        """One number for each sample, equal for samples of one image; None where samples share no pixels."""
        return None

    @property
    def group_ids(self) -> Sequence[int]:
        """0 for a landscape image, 1 for a portrait one; for batches of one orientation."""
        raise NotImplementedError(f"{type(self).__name__} does not support TRAIN.ASPECT_GROUPING")

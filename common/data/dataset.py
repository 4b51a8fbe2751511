"""What every task's dataset has in common."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

from torch.utils.data import Dataset

from common.data.sample import Sample
from common.files.images import ImageReader


class TaskDataset(Dataset[Sample]):
    """Samples by index, where everything random about one comes from the generator that is passed in."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sample(self, index: int, rng: random.Random) -> Sample:
        """Sample number `index`; its random draws (flip, masking, ...) come from `rng` alone."""

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """key: (index, seed) as the samplers of common.data.samplers yield it."""
        index, seed = key
        return self.sample(index, random.Random(seed))

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Sample]:
        """The samples of a batch. An image that several of them show the same way is read and resized once."""
        with self.image_reader.keeping():
            return [self[key] for key in keys]

    @cached_property
    def image_reader(self) -> ImageReader:
        """What a dataset reads its images with, if samples of one image may share the tensor of its pixels."""
        return ImageReader()

    @property
    def image_keys(self) -> Sequence[int] | None:
        """A number for the image of each sample, None where a batch gains nothing from samples that share one."""
        return None

    @property
    def group_ids(self) -> Sequence[int]:
        """0 for a landscape image, 1 for a portrait one; for batches of one orientation."""
        raise NotImplementedError(f"{type(self).__name__} does not support TRAIN.ASPECT_GROUPING")

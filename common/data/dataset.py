"""What every task's dataset has in common."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence

from torch.utils.data import Dataset

from common.data.batch import Sample


class DataError(ValueError):
    """Data files that cannot be used as they are, or that do not fit the config; the message names the file or key."""


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

    @property
    def group_ids(self) -> Sequence[int]:
        """0 for a landscape picture, 1 for a portrait one; for batches of one orientation."""
        raise NotImplementedError(f"{type(self).__name__} does not support TRAIN.ASPECT_GROUPING")

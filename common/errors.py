"""Errors that a user can mend. A command line catches `UserError` and prints its one line instead of a traceback.

Every message names the file, the key or the line, what came and what was expected. Nothing here imports torch.
"""

from __future__ import annotations


class UserError(ValueError):
    """Base class: the input is wrong, not the program."""


class ConfigError(UserError):
    """A configuration cannot be used. The message names file, key, value and what was expected."""


class CheckpointError(UserError):
    """A checkpoint or weight file cannot be read or does not fit the model."""


class DataError(UserError):
    """An annotation or data file is malformed or contradicts another one."""


class WorkerError(UserError):
    """A worker process of a data loader has ended. The message names it and how it ended."""


class ImageError(UserError):
    """An image file cannot be decoded."""


class RegionError(UserError):
    """A region file or packed store is damaged or contradicts itself. The message names it."""


class InputError(DataError):
    """A question to a predictor cannot be answered. The message names the field, what came and what was expected."""


class BoxError(DataError):
    """Boxes given with an image cannot be used."""

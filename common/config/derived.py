"""Values that follow from config keys. Nothing here imports torch."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

from common.config.config import Config

LANGUAGE_FILES = ("pytorch_model.bin", "model.safetensors")  # of the folder BERT_MODEL_NAME, the first one there counts


def numbered_file(prefix: str, epoch: int) -> str:
    """Name of a file of weights or of a checkpoint: <prefix>-%04d.model."""
    return f"{prefix}-{epoch:04d}.model"


def value_at(cfg: Config, path: str) -> Any:
    """The value of a dotted key. Raises KeyError where the config has no such key."""
    return reduce(lambda section, name: section[name], path.split("."), cfg)


def vocabulary_path(cfg: Config) -> Path:
    """The vocabulary file that BERT_MODEL_NAME names: that file, or vocab.txt in that folder."""
    path = Path(cfg.NETWORK.BERT_MODEL_NAME)
    return path if path.is_file() or path.suffix == ".txt" else path / "vocab.txt"


def usable_positions(cfg: Config) -> int:
    """Positions of the encoder's sequence, text, regions and END together; those up to the padding index are unused."""
    section = cfg.NETWORK.VLBERT
    return section.max_position_embeddings - section.position_padding_idx - 1


def backbone_path(cfg: Config) -> str | None:
    """File of the CNN's weights: IMAGE_PRETRAINED and the number of the epoch. None if IMAGE_PRETRAINED is empty."""
    network = cfg.NETWORK
    if not network.IMAGE_PRETRAINED:
        return None
    return numbered_file(network.IMAGE_PRETRAINED, network.IMAGE_PRETRAINED_EPOCH)

"""Values that follow from config keys. Nothing here imports torch."""

from __future__ import annotations

from common.config.config import Config

LANGUAGE_FILES = ("pytorch_model.bin", "model.safetensors")  # of the folder BERT_MODEL_NAME, the first one there counts


def numbered_file(prefix: str, epoch: int) -> str:
    """Name of a file of weights or of a checkpoint: <prefix>-%04d.model."""
    return f"{prefix}-{epoch:04d}.model"


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

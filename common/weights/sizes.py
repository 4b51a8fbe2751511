"""The sizes that the config of a checkpoint asks for, checked before the model is built. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from common.config import Config, dataset_sections
from common.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

MAX_PARAMETERS = 2_000_000_000  # six times those of VL-BERT large
MAX_SCALE = 10_000  # pixels of the longer side of a resized image


def check_limits(cfg: Config, source: Path, max_parameters: int) -> None:
    """Raises CheckpointError for a config that asks for more than `max_parameters`, or for images beyond MAX_SCALE.

    source: the checkpoint that holds the config.
    """
    count = least_parameters(cfg)
    if count > max_parameters:
        raise CheckpointError(
            f"checkpoint {source}: its config asks for at least {count} parameters: expected at most {max_parameters}; "
            "--max-parameters (max_parameters) allows more"
        )
    if (scales := tuple(cfg.SCALES)) and max(scales) > MAX_SCALE:
        raise CheckpointError(f"checkpoint {source}: its config has SCALES {scales}: expected at most {MAX_SCALE}")


def least_parameters(cfg: Config) -> int:
    """The parameters of tables, layers and wide heads, a lower bound on those of the model."""
    network, sizes = cfg.NETWORK, cfg.NETWORK.VLBERT
    hidden = sizes.hidden_size
    tables = sizes.vocab_size + sizes.max_position_embeddings + sizes.type_vocab_size
    layer = 4 * hidden * hidden + 2 * hidden * sizes.intermediate_size
    heads = sizes.get("visual_region_classes", 0) + dataset_sections(cfg)[0].get("ANSWER_VOCAB_SIZE", 0)
    heads += network.get("CLASSIFIER_HIDDEN_SIZE", 0)
    return int(hidden * (tables + heads + sizes.visual_size) + sizes.num_hidden_layers * layer)


def check_sizes(cfg: Config, state: Mapping[str, Tensor], source: str) -> None:
    """Raises CheckpointError where the config asks for larger tables or more layers of VisualLinguisticBert than a
    state dict has. Parts that the state dict does not have are not checked. source: of the state dict."""
    sizes = cfg.NETWORK.VLBERT
    asked = {
        "word_embeddings.weight": (sizes.vocab_size, sizes.hidden_size),
        "position_embeddings.weight": (sizes.max_position_embeddings, sizes.hidden_size),
        "token_type_embeddings.weight": (sizes.type_vocab_size, sizes.hidden_size),
        "encoder.layer.0.intermediate.dense.weight": (sizes.intermediate_size, sizes.hidden_size),
    }
    layers = set()
    for key, value in state.items():
        if not hasattr(value, "shape"):
            raise CheckpointError(f"{source}: {key} is a {type(value).__name__}: expected a tensor")
        name = key.removeprefix("module.").removeprefix("vlbert.")
        if any(want > have for want, have in zip(asked.get(name, ()), value.shape, strict=False)):
            raise CheckpointError(
                f"{source} does not fit the configured model: {key} is {tuple(value.shape)}, the config asks for "
                f"{asked[name]}"
            )
        if name.startswith("encoder.layer."):
            layers.add(name.split(".")[2])
    if layers and len(layers) < sizes.num_hidden_layers:
        raise CheckpointError(
            f"{source} does not fit the configured model: it has {len(layers)} layers, the config asks for "
            f"{sizes.num_hidden_layers}"
        )

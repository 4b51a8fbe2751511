"""Record of an encoder's layers and attention while a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from common.nn.bert import Encoder, EncoderOutput


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[EncoderOutput]]:
    """Within the block, each pass through the model's one Encoder appends its output, with all layers and attention.

    The encoder then computes its attention explicitly instead of by a fused kernel. The results agree.

    Raises ValueError for a model that has not exactly one Encoder.
    """
    encoders = [m for m in model.modules() if isinstance(m, Encoder)]
    if len(encoders) != 1:
        raise ValueError(f"{type(model).__name__} has {len(encoders)} encoders, expected one")
    outputs: list[EncoderOutput] = []

    def ask_for_everything(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[:2], {"all_layers": True, "with_probs": True}

    def keep(module: nn.Module, args: tuple[Any, ...], output: EncoderOutput) -> None:
        outputs.append(output)

    handles = [
        encoders[0].register_forward_pre_hook(ask_for_everything, with_kwargs=True),
        encoders[0].register_forward_hook(keep),
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()

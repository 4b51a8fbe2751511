"""Changes to the state dict of a pretraining checkpoint before VCR loads it (original 8.18)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from common.config import Config
from common.errors import CheckpointError

State = dict[str, Tensor]
RELATIONSHIP = "vlbert._module.relationsip_head.caption_image_relationship"
TOKEN_TYPES = "vlbert._module.token_type_embeddings.weight"


def adapt_pretrained(cfg: Config) -> Callable[[State], State]:
    """The change of a renamed state dict that the keys of NETWORK ask for.

    LOAD_REL_HEAD: the 1fc classifier starts as the difference of the two relationship logits.
    PARTIAL_PRETRAIN_SEGMB_INIT: the second text segment starts as the first. The change then raises CheckpointError for
    a state dict without token types.
    """
    network = cfg.NETWORK

    def adapt(state: State) -> State:
        state = dict(state)
        # A 2fc classifier has no layer of that shape.
        if network.LOAD_REL_HEAD and network.CLASSIFIER_TYPE == "1fc" and f"{RELATIONSHIP}.weight" in state:
            for leaf in ("weight", "bias"):
                value = state[f"{RELATIONSHIP}.{leaf}"].float()
                state[f"final_mlp.1.{leaf}"] = value[1:2] - value[0:1]
        if network.PARTIAL_PRETRAIN_SEGMB_INIT:
            if TOKEN_TYPES not in state:
                raise CheckpointError(
                    f"NETWORK.PARTIAL_PRETRAIN_SEGMB_INIT: the renamed checkpoint has no {TOKEN_TYPES}"
                )
            types = state[TOKEN_TYPES].float().clone()
            types[1] = types[0]
            state[TOKEN_TYPES] = types
        return state

    return adapt

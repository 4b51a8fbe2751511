"""What a user would take from pip instead: models of transformers of the same size on the same batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from common.boxes import FEATURE_DIM
from common.config import Config
from common.data.sample import Batch
from common.nn.losses import binary_cross_entropy_sum
from common.precision import Precision


class Peer(nn.Module):
    """A transformers encoder with a linear answer head, trained as ours is."""

    def __init__(self, encoder: nn.Module, lxmert: bool, hidden: int, answers: int) -> None:
        super().__init__()
        self.encoder, self.lxmert = encoder, lxmert
        self.head = nn.Linear(hidden, answers)

    def forward(self, batch: Batch) -> Tensor:
        given: dict[str, Any] = {"input_ids": batch.text_ids, "attention_mask": batch.text_mask.long()}
        mask = batch.box_mask.long()
        if self.lxmert:
            place = batch.boxes / batch.im_info[:, None, [0, 1, 0, 1]]
            given |= {"visual_feats": batch.features, "visual_pos": place, "visual_attention_mask": mask}
        else:
            given |= {"visual_embeds": batch.features, "visual_attention_mask": mask}
            given["visual_token_type_ids"] = torch.ones_like(mask)
        return self.head(self.encoder(**given).pooled_output if self.lxmert else self.encoder(**given).pooler_output)


class PeerStep:
    """Forward and training step with PyTorch's own AdamW and clipping."""

    def __init__(self, model: Peer, batch: Batch, precision: Precision, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.batch, self.precision, self.optimizer = model, batch, precision, optimizer

    def forward(self) -> None:
        self.model.eval()
        with torch.inference_mode(), self.precision.autocast():
            self.model(self.batch)

    def train(self) -> None:
        self.model.train()
        with self.precision.autocast():
            logits = self.model(self.batch)
        binary_cross_entropy_sum(logits, self.batch.targets["label"]).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def build_peer(name: str, cfg: Config) -> Peer:
    """VisualBert: the layers of cfg. Lxmert: its published 9, 5 and 5 layers of the same width."""
    from transformers import LxmertConfig, LxmertModel, VisualBertConfig, VisualBertModel

    sizes, answers = cfg.NETWORK.VLBERT, cfg.DATASET.ANSWER_VOCAB_SIZE
    common = {
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.hidden_size,
        "num_attention_heads": sizes.num_attention_heads,
        "intermediate_size": sizes.intermediate_size,
    }
    if name == "Lxmert":
        model = LxmertModel(LxmertConfig(**common, visual_feat_dim=FEATURE_DIM))
        return Peer(model, True, sizes.hidden_size, answers)
    config = VisualBertConfig(**common, num_hidden_layers=sizes.num_hidden_layers, visual_embedding_dim=FEATURE_DIM)
    return Peer(VisualBertModel(config), False, sizes.hidden_size, answers)

"""Prediction heads: those of pretraining (original 2.13) and the classifiers of the tasks (original 2.18)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.nn.bert import PredictionHeadTransform, activation


class RelationshipHead(nn.Module):
    """Whether caption and image belong together: pooled [B, H] -> logits [B, 2]."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.caption_image_relationship = nn.Linear(hidden_size, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.caption_image_relationship(pooled)


class _LanguagePredictions(nn.Module):
    """Transform and decoder of the masked language head: [..., H] -> logits [..., V]."""

    def __init__(self, word_embeddings: nn.Embedding, hidden_act: str) -> None:
        super().__init__()
        vocab_size, hidden_size = word_embeddings.weight.shape
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.transform = PredictionHeadTransform(hidden_size, hidden_act)
        self.decoder = nn.Linear(hidden_size, vocab_size, bias=False)
        self.decoder.weight = word_embeddings.weight  # tied: one parameter with two names

    def forward(self, hidden: Tensor) -> Tensor:
        return self.decoder(self.transform(hidden)) + self.bias


class MaskedLanguageHead(nn.Module):
    """Words at masked positions: [..., H] -> logits [..., V]; the decoder is the word embedding table."""

    def __init__(self, word_embeddings: nn.Embedding, hidden_act: str) -> None:
        super().__init__()
        self.predictions = _LanguagePredictions(word_embeddings, hidden_act)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.predictions(hidden)


class RegionHeadTransform(nn.Module):
    """dense and activation, no LayerNorm: [..., H] -> [..., H]."""

    def __init__(self, hidden_size: int, hidden_act: str) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = activation(hidden_act)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden))


class MaskedRegionHead(nn.Module):
    """Object classes of masked regions: [..., H] -> logits [..., num_classes]."""

    def __init__(self, hidden_size: int, hidden_act: str, num_classes: int) -> None:
        super().__init__()
        self.transform = RegionHeadTransform(hidden_size, hidden_act)
        self.region_cls_pred = nn.Linear(hidden_size, num_classes)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.region_cls_pred(self.transform(hidden))


def build_classifier(
    kind: str, hidden_size: int, num_outputs: int, mlp_size: int, dropout: float, hidden_act: str = "gelu"
) -> nn.Sequential:
    """A task classifier [..., H] -> [..., num_outputs] by CLASSIFIER_TYPE: "2fc", "1fc" or "mlm" (original 9.15).

    Linear layers get Xavier-uniform weights and zero biases. Raises ValueError for another kind.
    """
    layers: list[nn.Module]
    if kind == "2fc":
        layers = [
            nn.Dropout(dropout),
            nn.Linear(hidden_size, mlp_size),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(mlp_size, num_outputs),
        ]
    elif kind == "1fc":
        layers = [nn.Dropout(dropout), nn.Linear(hidden_size, num_outputs)]
    elif kind == "mlm":
        layers = [
            PredictionHeadTransform(hidden_size, hidden_act),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, num_outputs),
        ]
    else:
        raise ValueError(f"NETWORK.CLASSIFIER_TYPE {kind!r}: expected 2fc, 1fc or mlm")
    return init_classifier(nn.Sequential(*layers))


def init_classifier(classifier: nn.Sequential) -> nn.Sequential:
    """Xavier-uniform weights and zero biases for every linear layer inside; returns the classifier."""
    for m in classifier.modules():
        if isinstance(m, nn.Linear):
            nn.init.xavier_uniform_(m.weight)
            nn.init.zeros_(m.bias)
    return classifier

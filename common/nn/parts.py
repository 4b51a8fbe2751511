"""The classes that models are built of: plain by default, or faster ones with the same parameters and results."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from common.nn.bert import Encoder
from common.nn.resnet import Bottleneck, ResNetC4


@dataclass(frozen=True)
class Parts:
    """encoder: the BERT encoder. backbone, block: the ResNet up to layer3 and its residual block, also of C5.
    dropout: that of embeddings. Each class takes the arguments of its default and has the same state-dict keys."""

    encoder: type[Encoder] = Encoder
    backbone: type[ResNetC4] = ResNetC4
    block: type[Bottleneck] = Bottleneck
    dropout: type[nn.Dropout] = nn.Dropout


PLAIN = Parts()

"""Metrics of pretraining (original 5.26)."""

from __future__ import annotations

from common.config import Config
from common.metrics import Metric, MetricGroup, loss_means
from pretrain.keys import MULTITASK
from pretrain.metrics import MLMAccuracy, MVRCAccuracy, RelationshipAccuracy


def build_metrics(cfg: Config, training: bool) -> MetricGroup:
    """Returns accuracies of the losses that are on, and the losses of TRAIN.LOSS_LOGGERS, in validation too."""
    metrics: list[Metric] = []
    if cfg.NETWORK.WITH_REL_LOSS:
        metrics.append(RelationshipAccuracy())
    if cfg.NETWORK.WITH_MLM_LOSS:
        metrics += [MLMAccuracy("wvc"), MLMAccuracy("aux")] if _is_multitask(cfg) else [MLMAccuracy()]
    if cfg.NETWORK.WITH_MVRC_LOSS:
        metrics.append(MVRCAccuracy())
    return MetricGroup([*metrics, *loss_means(cfg.TRAIN.LOSS_LOGGERS)])


def main_metric(cfg: Config) -> str:
    """Returns the accuracy of masked words of captions; without that loss, of regions or of the relationship."""
    if cfg.NETWORK.WITH_MLM_LOSS:
        return "MLMAccWVC" if _is_multitask(cfg) else "MLMAcc"
    return "MVRCAccuracy" if cfg.NETWORK.WITH_MVRC_LOSS else "RelAcc"


def _is_multitask(cfg: Config) -> bool:
    return cfg.MODULE == MULTITASK

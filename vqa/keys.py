"""The configuration keys of VQA, and the combinations of values that cannot work."""

from __future__ import annotations

import logging

from common.config import Config
from common.config.keys import ANSWER_KEYS, CLASSIFIER_KEYS, IMAGE_GROUPING_KEYS, Key, TaskKeys, bad_value
from common.config.release import ANSWERING_KEYS, FINE_TUNING_KEYS, MASKED_MODELLING_KEY, RELEASE_KEYS

logger = logging.getLogger(__name__)


def check(cfg: Config) -> None:
    network = cfg.NETWORK
    if network.ENABLE_CNN_REG_LOSS:
        if not network.IMAGE_FEAT_PRECOMPUTED:
            raise bad_value("NETWORK.ENABLE_CNN_REG_LOSS", True, "False: vqa has no object labels for this loss")
        logger.warning("NETWORK.ENABLE_CNN_REG_LOSS has no effect in vqa with precomputed features")
    width, hidden = network.CLASSIFIER_HIDDEN_SIZE, network.VLBERT.hidden_size
    if network.CLASSIFIER_PRETRAINED and network.CLASSIFIER_TYPE == "2fc" and width != hidden:
        expected = f"NETWORK.VLBERT.hidden_size, which is {hidden}, where CLASSIFIER_PRETRAINED fills a 2fc classifier"
        raise bad_value("NETWORK.CLASSIFIER_HIDDEN_SIZE", width, expected)


KEYS = TaskKeys(
    rows=(
        *RELEASE_KEYS,
        *FINE_TUNING_KEYS,
        *ANSWERING_KEYS,
        MASKED_MODELLING_KEY,
        *ANSWER_KEYS,
        *CLASSIFIER_KEYS,
        *IMAGE_GROUPING_KEYS,
        Key("DATASET.BOXES", "str", "36", "which precomputed regions", choices=("36", "10-100ada")),
    ),
    defaults={"NETWORK.VLBERT.with_pooler": False, "TRAIN.LOSS_LOGGERS": (("ans_loss", "AnsLoss"),)},
    choices={
        "MODULE": ("", "ResNetVLBERT"),
        "DATASET.DATASET": ("", "vqa"),
        "NETWORK.BLIND": (False,),
        "NETWORK.IMAGE_SEMANTIC": (False,),
        "NETWORK.CLASSIFIER_TYPE": ("2fc", "1fc", "mlm"),
        "NETWORK.VLBERT.object_word_embed_mode": (2,),
    },
    reads=(
        "DATASET.TASK",
        "DATASET.USE_IMDB",
        "NETWORK.NO_GROUNDING",
        "NETWORK.ENABLE_CNN_REG_LOSS",
        "NETWORK.CLASSIFIER_PRETRAINED",
    ),
    unread=("DATASET.TRAIN_ANNOTATION_FILE", "DATASET.VAL_ANNOTATION_FILE", "DATASET.TEST_ANNOTATION_FILE"),
    check=check,
)

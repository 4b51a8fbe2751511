"""The configuration keys of VCR."""

from __future__ import annotations

from common.config import Config
from common.config.checks import check_no_aspect_grouping, check_region_path
from common.config.keys import CLASSIFIER_KEYS, IMAGE_GROUPING_KEYS, Key, TaskKeys
from common.config.release import FINE_TUNING_KEYS, MASKED_MODELLING_KEY, RELEASE_KEYS


def check(cfg: Config) -> None:
    check_no_aspect_grouping(cfg)
    check_region_path(cfg)


KEYS = TaskKeys(
    rows=(
        *RELEASE_KEYS,
        *FINE_TUNING_KEYS,
        MASKED_MODELLING_KEY,
        *CLASSIFIER_KEYS,
        *IMAGE_GROUPING_KEYS,
        Key(
            "DATASET.PERSON_NAMES",
            "str",
            "sample",
            "first neutral name of an image: sample chooses it from the sample alone, walk continues after the sample "
            "before it",
            choices=("sample", "walk"),
            ours=True,
        ),
        Key("NETWORK.PARTIAL_PRETRAIN_SEGMB_INIT", "bool", False, "copy row 0 of the loaded segment table to row 1"),
        Key("NETWORK.QA_ONE_SENT", "bool", False, "question and answer are one segment without [SEP]"),
        Key("NETWORK.ANSWER_FIRST", "bool", False, "the answer comes before the question"),
        Key("NETWORK.CNN_LOSS_TOP", "bool", False, "classify object states (true) or CNN features (false)"),
        Key("NETWORK.CNN_REG_DROPOUT", "float", 0.0, "dropout of its head on object states", minimum=0, maximum=1),
        Key("NETWORK.LOAD_REL_HEAD", "bool", True, "the 1fc head starts as the checkpoint's relationship head"),
    ),
    defaults={
        "DATASET.LABEL_INDEX_IN_BATCH": 7,
        "NETWORK.IMAGE_SEMANTIC": True,
        "NETWORK.VLBERT.object_word_embed_mode": 1,
        "TRAIN.LOSS_LOGGERS": (("ans_loss", "AnsLoss"), ("cnn_regularization_loss", "CNNRegLoss")),
    },
    choices={
        "MODULE": ("", "ResNetVLBERT"),
        "DATASET.DATASET": ("", "vcr"),
        "DATASET.TASK": ("Q2A", "QA2R"),
        "NETWORK.CLASSIFIER_TYPE": ("2fc", "1fc"),
        "NETWORK.VLBERT.object_word_embed_mode": (1, 2, 3),
        "NETWORK.VLBERT.with_pooler": (True,),
    },
    reads=(
        "DATASET.TASK",
        "DATASET.MASK_SIZE",
        "DATASET.BASIC_ALIGN",
        "DATASET.ONLY_USE_RELEVANT_DETS",
        "DATASET.QA2R_NOQ",
        "NETWORK.BLIND",
        "NETWORK.NO_GROUNDING",
        "NETWORK.NO_OBJ_ATTENTION",
        "NETWORK.ENABLE_CNN_REG_LOSS",
        "NETWORK.CNN_LOSS_WEIGHT",
        "NETWORK.ANS_LOSS_WEIGHT",
        "NETWORK.CLASSIFIER_SIGMOID",
        "NETWORK.CLASSIFIER_SIGMOID_LOSS_POSITIVE_WEIGHT",
        "NETWORK.VLBERT.object_word_embed_mode",
    ),
    check=check,
)

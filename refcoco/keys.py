"""The configuration keys of RefCOCO+, RefCOCO and RefCOCOg."""

from __future__ import annotations

from common.config.checks import check_region_path
from common.config.keys import ANSWER_KEYS, CLASSIFIER_KEYS, IMAGE_GROUPING_KEYS, Key, TaskKeys, paths
from common.config.release import ANSWERING_KEYS, FINE_TUNING_KEYS, RELEASE_KEYS

BOX_MODES = ("gt", "proposal", "proposal+gt", "gt+proposal")

KEYS = TaskKeys(
    rows=(
        *RELEASE_KEYS,
        *FINE_TUNING_KEYS,
        *ANSWERING_KEYS,
        *ANSWER_KEYS,
        *CLASSIFIER_KEYS,
        *IMAGE_GROUPING_KEYS,
        Key("DATASET.TRAIN_BOXES", "str", "gt", "candidate boxes of training", choices=BOX_MODES),
        Key("DATASET.VAL_BOXES", "str", "gt", "candidate boxes of validation", choices=BOX_MODES),
        Key("DATASET.TEST_BOXES", "str", "gt", "candidate boxes of test", choices=BOX_MODES),
        Key(
            "DATASET.PROPOSAL_SOURCE",
            "str",
            "official",
            "official detections, or regions of the Visual Genome detector",
            choices=("official", "vg"),
        ),
        Key("DATASET.SPLIT_BY", "str", "unc", "author of the split: the name in refs(<name>).p", ours=True),
        Key(
            "NETWORK.SCORE_PADDING",
            "bool",
            False,
            "whether a padded region of the batch keeps its score and may win, as in the original's figures",
            ours=True,
        ),
    ),
    defaults={
        "NETWORK.ENABLE_CNN_REG_LOSS": False,
        "NETWORK.VLBERT.with_pooler": False,
        "TRAIN.LOSS_LOGGERS": (("cls_loss", "ClsLoss"),),
    },
    choices={
        "MODULE": ("", "ResNetVLBERT"),
        "DATASET.DATASET": ("", "refcoco+", "refcoco", "refcocog"),
        "NETWORK.IMAGE_SEMANTIC": (False,),
    },
    reads=("DATASET.TASK",),
    unread=(
        "DATASET.TRAIN_ANNOTATION_FILE",
        "DATASET.VAL_ANNOTATION_FILE",
        "DATASET.TEST_ANNOTATION_FILE",
        "NETWORK.CLASSIFIER_TYPE",
        "NETWORK.CLASSIFIER_HIDDEN_SIZE",
        *paths(ANSWER_KEYS),
    ),
    check=check_region_path,
)

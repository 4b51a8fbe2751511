"""The configuration keys of pretraining, and the combinations of values that cannot work."""

from __future__ import annotations

from collections.abc import Mapping

from common.config import Config, dataset_sections
from common.config.checks import check_no_aspect_grouping
from common.config.keys import ANSWER_KEYS, CLASSIFIER_KEYS, PRETRAINING_HEAD_KEYS, Key, TaskKeys, bad_value, paths
from common.config.release import MASKED_MODELLING_KEY, RELEASE_KEYS

MULTITASK = "ResNetVLBERTForPretrainingMultitask"
SINGLE = "ResNetVLBERTForPretraining"
ATTENTION_VIS = "ResNetVLBERTForAttentionVis"


def check(cfg: Config) -> None:
    module, vlbert = cfg.MODULE, cfg.NETWORK.VLBERT
    _check_datasets(module, [entry.DATASET for entry in dataset_sections(cfg)], not isinstance(cfg.DATASET, Mapping))
    if module == MULTITASK and vlbert.visual_size != vlbert.hidden_size:
        expected = f"NETWORK.VLBERT.hidden_size, which is {vlbert.hidden_size}, because text-only samples share it"
        raise bad_value("NETWORK.VLBERT.visual_size", vlbert.visual_size, expected)
    if cfg.NETWORK.WITH_REL_LOSS and not vlbert.with_pooler and module != ATTENTION_VIS:
        raise bad_value(
            "NETWORK.WITH_REL_LOSS", True, "False, or NETWORK.VLBERT.with_pooler true, which its head reads"
        )
    check_no_aspect_grouping(cfg)


def _check_datasets(module: str, names: list[str], is_list: bool) -> None:
    if is_list and len(names) < 2:
        raise bad_value("DATASET", names, "at least two data sets in a list, or one mapping")
    if module == MULTITASK and not is_list:
        raise bad_value("DATASET", names[0], f"a list of captions and plain text, which {module} trains on")
    if module == SINGLE and is_list:
        raise bad_value("DATASET", names, f"one data set of captions, as {module} takes no other")


KEYS = TaskKeys(
    rows=(
        *RELEASE_KEYS,
        MASKED_MODELLING_KEY,
        *ANSWER_KEYS,
        *CLASSIFIER_KEYS,
        *PRETRAINING_HEAD_KEYS,
        Key(
            "DATASET.SEQ_LEN",
            "int",
            64,
            "most text tokens plus boxes (captions) or tokens (corpus) of a sample",
            minimum=1,
        ),
        Key("DATASET.MIN_SEQ_LEN", "int", 0, "corpus: a shorter line is joined with those that follow", minimum=0),
        Key("NETWORK.WITH_REL_LOSS", "bool", True, "predict whether caption and image belong together"),
        Key("NETWORK.WITH_MLM_LOSS", "bool", True, "predict masked words"),
        Key("NETWORK.WITH_MVRC_LOSS", "bool", True, "predict the category of masked regions"),
        Key("NETWORK.MLM_LOSS_NORM_IN_BATCH_FIRST", "bool", False, "average words over a sample first"),
        Key("NETWORK.MVRC_LOSS_NORM_IN_BATCH_FIRST", "bool", False, "average regions over a sample first"),
        Key("NETWORK.MASK_RAW_PIXELS", "bool", True, "mask regions in the image, not their features"),
    ),
    defaults={
        "TRAIN.ASPECT_GROUPING": False,
        "TRAIN.LOSS_LOGGERS": (
            ("relationship_loss", "RelLoss"),
            ("mlm_loss", "MLMLoss"),
            ("mvrc_loss", "MVRCLoss"),
        ),
    },
    choices={
        "MODULE": (MULTITASK, SINGLE, ATTENTION_VIS),
        "DATASET.DATASET": ("conceptual_captions", "coco_captions", "general_corpus"),
        "NETWORK.IMAGE_SEMANTIC": (False,),
    },
    unread=(*paths(ANSWER_KEYS), *paths(CLASSIFIER_KEYS)),
    check=check,
    dataset_list=True,
)

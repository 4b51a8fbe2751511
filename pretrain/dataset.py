"""The datasets of pretraining from a config."""

from __future__ import annotations

from typing import Any

from common.config import Config, dataset_sections
from common.data.build import build_transform
from common.data.dataset import TaskDataset
from common.data.text import BertTokenizer, load_tokenizer
from common.errors import DataError
from pretrain.captions import CaptionSettings, COCOCaptions, ConceptualCaptions
from pretrain.corpus import GeneralCorpus

SPLITS = ("train", "val")


def build_dataset(cfg: Config, split: str) -> TaskDataset | list[TaskDataset]:
    """The dataset of a config for "train", "val" or "test", or a list of them where DATASET is a list.

    Pretraining has no test. The split "test" has masked words and regions like the others.
    """
    tokenizer = load_tokenizer(cfg.NETWORK.BERT_MODEL_NAME)
    datasets = [build_one(cfg, entry, split, tokenizer) for entry in dataset_sections(cfg)]
    return datasets if len(datasets) > 1 else datasets[0]


def build_one(cfg: Config, entry: Any, split: str, tokenizer: BertTokenizer) -> TaskDataset:
    """The dataset of one mapping of DATASET."""
    network = cfg.NETWORK
    if entry.DATASET == "general_corpus":
        files = entry[f"{split.upper()}_ANNOTATION_FILE"].split("+")
        return GeneralCorpus(files, tokenizer, entry.SEQ_LEN, entry.MIN_SEQ_LEN, network.WITH_MLM_LOSS)
    settings = CaptionSettings(
        tokenizer=tokenizer,
        transform=build_transform(cfg, split),
        seq_len=entry.SEQ_LEN,
        num_classes=network.VLBERT.visual_region_classes,
        precomputed=network.IMAGE_FEAT_PRECOMPUTED,
        with_relationship=network.WITH_REL_LOSS,
        with_mlm=network.WITH_MLM_LOSS,
        with_mvrc=network.WITH_MVRC_LOSS,
        mask_raw_pixels=network.MASK_RAW_PIXELS,
        image_box=entry.ADD_IMAGE_AS_A_BOX,
    )
    image_set = entry[f"{split.upper()}_IMAGE_SET"]
    if image_set not in SPLITS:
        raise DataError(f"DATASET.{split.upper()}_IMAGE_SET {image_set!r}: {entry.DATASET} has {', '.join(SPLITS)}")
    if entry.DATASET == "coco_captions":
        return COCOCaptions(entry.DATASET_PATH, image_set, settings, entry.ZIP_MODE)
    return ConceptualCaptions(entry.DATASET_PATH, image_set, settings, entry.REGION_PATH or None, entry.ZIP_MODE)

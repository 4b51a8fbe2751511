"""A made-up data set of pretraining: captions, region files, images and text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from common.data.text import load_tokenizer
from common.data.transforms import Transform
from common.regions.json_store import save_regions
from common.regions.regions import Regions
from pretrain.captions import CaptionSettings
from tests.tiny import tiny_settings

CLASSES = 7
MEANS = (102.9801, 115.9465, 122.7717)
COLORS = {"red": (230, 30, 30), "green": (30, 200, 30), "blue": (40, 60, 230), "yellow": (230, 220, 40)}
WORDS = ["the", "a", "box", "near", "of", ".", "##s", "text", "line", *COLORS, *(f"w{i}" for i in range(12))]
# Ids as in bert-base-uncased: 0 [PAD], 100 [UNK], 101 [CLS], 102 [SEP], 103 [MASK]; 104 the, 105 a, 106 box, ...
VOCABULARY = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
CORPUS = "the box .\n\na text line of the text\nw1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 boxs\n  \na line\n"


def write_world(root: Path, train: int = 12, val: int = 6) -> Path:
    """DATASET_PATH with images of coloured boxes, their detections and captions, a text corpus and a vocabulary."""
    (root / "bert").mkdir(parents=True)
    (root / "bert/vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (root / "corpus.doc").write_text(CORPUS)
    for split, count in (("train", train), ("val", val)):
        rng = np.random.default_rng(len(split))
        (root / f"{split}_image").mkdir()
        rows = []
        for i in range(count):
            rows.append(_write_image(root, split, f"{i:08d}", rng))
        (root / f"{split}_frcnn.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def _write_image(root: Path, split: str, name: str, rng: np.random.Generator) -> dict[str, Any]:
    """Write an image and its detections. Returns its line of the annotation file."""
    width, height = (int(side) for side in rng.integers(40, 64, 2))
    count = int(rng.integers(3, 6))
    corner = rng.uniform(0, 0.5, (count, 2)) * (width, height)
    boxes = np.concatenate([corner, corner + rng.uniform(0.2, 0.45, (count, 2)) * (width, height)], axis=1)
    colors = rng.integers(0, len(COLORS), count)
    canvas = np.full((height, width, 3), 128, np.uint8)
    for (x1, y1, x2, y2), color in zip(boxes.astype(int), colors, strict=True):
        canvas[y1 : y2 + 1, x1 : x2 + 1] = [*COLORS.values()][color]
    Image.fromarray(canvas).save(root / f"{split}_image/{name}.jpg")
    logits = rng.standard_normal((count, CLASSES))
    logits[np.arange(count), 1 + colors] += 4
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    features = np.abs(rng.standard_normal((count, 2048))) * 0.1
    features[np.arange(count), colors] = 20
    arrays = (torch.from_numpy(a.astype(np.float32)) for a in (boxes, features, scores))
    box, feature, score = arrays
    save_regions(root / f"{split}_frcnn", name, Regions(box, feature, None, score, width, height))
    named = [[*COLORS][color] for color in colors]
    caption = ["a", named[0], "box", "near", "the", named[1], "boxs", "."]
    return {
        "image": f"{split}_image.zip@/{name}.jpg",
        "caption": caption,
        "frcnn": f"{split}_frcnn.zip@/{name}.json",
    }


def caption_settings(
    root: Path, scales: tuple[int, int] = (48, 80), flip: float = 0.0, **changes: Any
) -> CaptionSettings:
    settings = {"num_classes": CLASSES, "precomputed": True} | changes
    tokenizer = load_tokenizer(root / "bert")
    return CaptionSettings(tokenizer, Transform(scales, MEANS, (1.0, 1.0, 1.0), flip), **settings)


def tiny_pretrain(root: Path, out: Path) -> dict[str, Any]:
    """A multitask run on features."""
    settings = tiny_settings("pretrain/base_prec_4x16G_fp32.yaml", root, out)
    corpus = str(root / "corpus.doc")
    settings["SCALES"] = [48, 80]
    settings["DATASET"] = [
        {
            "DATASET": "conceptual_captions",
            "DATASET_PATH": str(root),
            "TRAIN_IMAGE_SET": "train",
            "VAL_IMAGE_SET": "val",
            "TEST_IMAGE_SET": "val",
        },
        {
            "DATASET": "general_corpus",
            "TRAIN_ANNOTATION_FILE": corpus,
            "VAL_ANNOTATION_FILE": corpus,
            "TEST_ANNOTATION_FILE": corpus,
            "SEQ_LEN": 10,
            "MIN_SEQ_LEN": 10,
        },
    ]
    settings["NETWORK"] |= {"IMAGE_FINAL_DIM": 16}
    settings["NETWORK"]["VLBERT"] |= {"visual_size": 16, "visual_region_classes": CLASSES}
    settings["TRAIN"] |= {"BATCH_IMAGES": [4, 3], "LR": 1e-4}
    settings["VAL"] = settings["TEST"] = {"BATCH_IMAGES": [4, 3]}
    return settings


def tiny_captions_only(root: Path, out: Path) -> dict[str, Any]:
    """A run of the module of captions alone, from pixels."""
    settings = tiny_pretrain(root, out)
    settings["_BASE_"] = settings["_BASE_"].replace("base_prec_4", "base_prec_withouttextonly_4")
    settings["DATASET"] = settings["DATASET"][0]
    settings["NETWORK"] |= {"IMAGE_FEAT_PRECOMPUTED": False, "IMAGE_NUM_LAYERS": 50, "IMAGE_RANDOM_INIT": True}
    for section in ("TRAIN", "VAL", "TEST"):
        settings[section] = settings[section] | {"BATCH_IMAGES": 4}
    return settings


def write_coco(own: Path) -> Path:
    """COCO 2017 in `own`: two images with instances, one without, one with more boxes than fit."""
    (own / "annotations").mkdir()
    (own / "val2017").mkdir()
    sizes = {7: (60, 40), 3: (50, 50), 9: (40, 60), 5: (64, 48)}
    for i, (width, height) in sizes.items():
        pixels = np.random.default_rng(i).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(own / f"val2017/{i:012d}.jpg")
    instances = [
        {"image_id": 7, "category_id": 18, "bbox": [1, 2, 10, 20], "iscrowd": 0},
        {"image_id": 7, "category_id": 1, "bbox": [5, 5, 0.5, 8], "iscrowd": 1},
        {"image_id": 3, "category_id": 1, "bbox": [0, 0, 50, 50], "iscrowd": 0},
        *({"image_id": 5, "category_id": 1, "bbox": [k, 0, 5, 5], "iscrowd": 0} for k in range(50)),
    ]
    images = [{"id": i, "width": w, "height": h, "file_name": f"{i:012d}.jpg"} for i, (w, h) in sizes.items()]
    content = {"images": images, "annotations": instances, "categories": [{"id": 1}, {"id": 18}]}
    (own / "annotations/instances_val2017.json").write_text(json.dumps(content))
    rows = [{"image_id": i, "caption": f"w{i} the box"} for i in sizes]
    rows.append({"image_id": 7, "caption": "another one"})
    (own / "annotations/captions_val2017.json").write_text(json.dumps({"annotations": rows}))
    return own

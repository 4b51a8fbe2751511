"""A made-up VCR data set in the layout of the real one: drawn images, metadata, annotations, region features."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image, ImageDraw

from common.regions.json_store import save_regions
from common.regions.regions import FEATURE_DIM, Regions
from tests.tiny import tiny_settings
from vcr.text import GENDER_NEUTRAL_NAMES, QA2R

SIZES = {"wide": (160, 90), "tall": (70, 120), "even": (100, 100), "broad": (200, 80)}
OBJECTS = {
    "wide": ["person", "person", "chair"],
    "tall": ["person", "pottedplant"],
    "even": ["person", "person", "person", "dog"],
    "broad": ["car", "person"],
}
COUNTS = {"train": 10, "val": 6, "test": 5}
WORDS = ("why", "does", "looks", "at", "holds", "is", "near", "because", "and", "they", "are", "happy", "?", ".", ",")
VERBS = ["holds", "looks at", "is near"]


def write_world(root: Path) -> Path:
    """DATASET_PATH of the world: annotations, vcr1images/, bert/vocab.txt and regions/."""
    for number, name in enumerate(SIZES):
        _write_image(root, name, number)
    for split, count in COUNTS.items():
        rng = Random(split)
        rows = [_annotation(split, i, rng) for i in range(count)]
        write_annotations(root / f"{split}.jsonl", rows)
    (root / "bert").mkdir()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names = [name.lower() for name in GENDER_NEUTRAL_NAMES]
    vocab = [*specials, *WORDS, *names, "chair", "pot", "##ted", "##plant", "dog", "car"]
    (root / "bert/vocab.txt").write_text("\n".join(vocab) + "\n")
    return root


def write_annotations(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_annotations(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _write_image(root: Path, name: str, number: int) -> None:
    width, height = SIZES[name]
    folder = root / "vcr1images" / f"movie_{name}"
    folder.mkdir(parents=True)
    image = Image.new("RGB", (width, height), (90, 110, 130))
    boxes, segms = [], []
    for i, _ in enumerate(OBJECTS[name]):
        x, y = 5.25 + 20 * i, 8.5 + 6 * i
        box = [x, y, x + 30, y + 40]
        ImageDraw.Draw(image).rectangle(box, fill=(40 * i, 250 - 60 * i, 60 * number))
        boxes.append([*box, 0.9 - 0.1 * i])
        segms.append([[[x, y], [x + 30, y + 10], [x + 5, y + 40]]])
    image.save(folder / f"{name}@0.jpg")
    metadata = {"boxes": boxes, "segms": segms, "names": OBJECTS[name], "width": width, "height": height}
    (folder / f"{name}@0.json").write_text(json.dumps(metadata))
    torch.manual_seed(number)
    rows = torch.tensor(boxes)[:, :4]
    regions = Regions(rows, torch.rand(len(rows), FEATURE_DIM), torch.rand(FEATURE_DIM), width=width, height=height)
    save_regions(root / "regions", f"{name}@0", regions)


def _annotation(split: str, number: int, rng: Random) -> dict[str, Any]:
    name = list(SIZES)[number % len(SIZES)]
    objects = OBJECTS[name]
    row = {
        "annot_id": f"{split}-{number}",
        "movie": f"movie_{name}",
        "objects": objects,
        "img_fn": f"movie_{name}/{name}@0.jpg",
        "metadata_fn": f"movie_{name}/{name}@0.json",
        "question": ["why", "does", [rng.randrange(len(objects))], "looks", "at", [0, 1], "?"],
        "answer_choices": [_sentence(objects, rng) for _ in range(4)],
        "rationale_choices": [["because", *_sentence(objects, rng), "and", *_sentence(objects, rng)] for _ in range(4)],
    }
    labels = {"answer_label": rng.randrange(4), "rationale_label": rng.randrange(4)}
    return row if split == "test" else row | labels


def _sentence(objects: list[str], rng: Random) -> list[Any]:
    """Of different lengths."""
    extra = ["they", "are", "happy", ","][: rng.randrange(5)]
    return [*extra, [rng.randrange(len(objects))], rng.choice(VERBS), [rng.randrange(len(objects))], "."]


def tiny_vcr(world: Path, out: Path, task: str) -> dict[str, Any]:
    """Settings of a run of seconds on precomputed features: five batches an epoch, two for an update."""
    settings = tiny_settings(f"vcr/base_{task.lower()}_4x16G_fp32.yaml", world, out)
    settings["SCALES"] = [64, 96]
    settings["MODEL_PREFIX"] = "tiny_a" if task != QA2R else "tiny_r"
    settings["DATASET"]["REGION_PATH"] = str(world / "regions")
    settings["NETWORK"] |= {"IMAGE_FEAT_PRECOMPUTED": True, "IMAGE_NUM_LAYERS": 50}
    settings["TRAIN"] |= {"BATCH_IMAGES": 2, "OPTIMIZER": "AdamW"}
    settings["VAL"] = settings["TEST"] = {"BATCH_IMAGES": 4}
    return settings

"""RefCOCO+ files that tests write themselves: one image with numbers to check by hand, or a small world."""

from __future__ import annotations

import json
import pickle
import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from common.data.text import load_tokenizer
from common.data.transforms import Transform
from common.regions.json_store import JsonRegions, save_regions
from common.regions.packed_store import pack
from common.regions.regions import Regions
from refcoco.dataset import CandidateSettings, ExpressionFiles, RefCOCODataset
from refcoco.files import DETECTIONS_FILE
from tests.tiny import tiny_settings

MEANS = (102.9801, 115.9465, 122.7717)
COLORS = {"red": (230, 30, 30), "green": (30, 200, 30), "blue": (40, 60, 230), "yellow": (230, 220, 40)}
WORDS = ["the", "thing", "left", "right", "of", "cat", "un", "##seen", *COLORS, *(f"w{i}" for i in range(8))]
# Ids as in bert-base-uncased: 0 [PAD], 100 [UNK], 101 [CLS], 102 [SEP], 103 [MASK]; 104 the, 105 thing, 106 left, ...
VOCABULARY = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]

GOLDEN_BOXES = [[10.5, 20.5, 100, 200], [300, 100, 120.5, 80.25], [0, 0, 50, 60]]  # original 10.15, x y w h
GOLDEN_DETECTIONS = [[12, 22, 98, 190], [200, 10, 600, 600]]


class World:
    """A DATASET_PATH: `add_image` and `add_reference` collect its entries, `write` writes the files."""

    def __init__(self, root: Path, dataset: str = "refcoco+", split_by: str = "unc") -> None:
        self.root, self.dataset, self.split_by = root, dataset, split_by
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.references: list[dict[str, Any]] = []
        self.detections: list[dict[str, Any]] = []

    def add_image(self, image_id: int, size: tuple[int, int], boxes: list[list[float]], crowd: tuple[int, ...] = ()):
        """boxes: x y w h. crowd: which of them are crowds. Annotation k has the id 100 * image_id + k."""
        self.images.append({"id": image_id, "width": size[0], "height": size[1], "file_name": f"{image_id}.jpg"})
        for k, box in enumerate(boxes):
            record = {"id": 100 * image_id + k, "image_id": image_id, "bbox": box, "category_id": 1, "area": 1.0}
            self.annotations.append({**record, "iscrowd": int(k in crowd), "segmentation": []})

    def add_reference(self, ann_id: int, sentences: list[str], split: str = "train") -> None:
        """Reference n has the id 50 + n. Sentence ids count down from 900 over all references."""
        count = sum(len(r["sentences"]) for r in self.references)
        records = [
            {"sent_id": 900 - count - k, "raw": text.upper(), "sent": text, "tokens": text.split()}
            for k, text in enumerate(sentences)
        ]
        reference = {
            "ref_id": 50 + len(self.references),
            "ann_id": ann_id,
            "category_id": 1,
            "image_id": ann_id // 100,
            "file_name": f"COCO_train2014_{ann_id // 100:012d}_{ann_id}.jpg",
            "split": split,
            "sent_ids": [r["sent_id"] for r in records],
            "sentences": records,
        }
        self.references.append(reference)

    def detect(self, image_id: int, *boxes: list[float]) -> None:
        self.detections += [{"image_id": image_id, "box": box, "score": 0.9, "category_id": 1} for box in boxes]

    def write(self) -> World:
        folder = self.root / self.dataset
        instances = {"images": self.images, "annotations": self.annotations, "categories": [{"id": 1, "name": "thing"}]}
        self.write_json("annotations/instances_train2014.json", instances)
        self.write_json(f"{self.dataset}/instances.json", instances)
        self.write_json(f"{self.dataset}/refs({self.split_by}).json", self.references)
        (folder / f"refs({self.split_by}).p").write_bytes(pickle.dumps(self.references, protocol=2))
        if self.detections:
            self.write_json(f"{self.dataset}/{DETECTIONS_FILE}", self.detections)
        (self.root / "bert").mkdir(exist_ok=True)
        (self.root / "bert/vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
        return self

    def write_json(self, name: str, content: Any) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        return path

    def draw(self, image_id: int, colors: list[tuple[int, int, int]] | None = None) -> Path:
        """Write the image, half red and half blue, or with `colors` each annotation in its colour on grey."""
        entry = next(i for i in self.images if i["id"] == image_id)
        size = (entry["width"], entry["height"])
        image = Image.new("RGB", size, (255, 0, 0) if colors is None else (128, 128, 128))
        if colors is None:
            image.paste((0, 0, 255), (size[0] // 2, 0, *size))
        for annotation, color in zip(self.of(image_id), colors or [], strict=False):
            x, y, w, h = annotation["bbox"]
            image.paste(color, (int(x), int(y), int(x + w), int(y + h)))
        path = self.root / f"train2014/COCO_train2014_{image_id:012d}.jpg"
        path.parent.mkdir(exist_ok=True)
        image.save(path, quality=95)
        return path

    def of(self, image_id: int) -> list[dict[str, Any]]:
        return [a for a in self.annotations if a["image_id"] == image_id]

    def open(self, image_sets: str = "train", flip: float = 0.0, **options: Any) -> RefCOCODataset:
        tokenizer = load_tokenizer(self.root / "bert")
        transform = Transform(options.pop("scales", (600, 1000)), MEANS, (1.0, 1.0, 1.0), flip)
        of_files = {"dataset": self.dataset} | {k: options.pop(k) for k in _names(ExpressionFiles) & options.keys()}
        of_candidates = {k: options.pop(k) for k in _names(CandidateSettings) & options.keys()}
        files = ExpressionFiles(self.root, image_sets, **of_files)
        return RefCOCODataset(files, CandidateSettings(**of_candidates), tokenizer, transform, **options)


def _names(settings: type) -> set[str]:
    return {field.name for field in fields(settings)}


def golden_world(root: Path) -> World:
    """The image of original 10.15 (image 42): the target is annotation 4200."""
    world = World(root)
    world.add_image(42, (640, 480), GOLDEN_BOXES)
    world.add_reference(4200, ["left thing"])
    world.detect(42, *GOLDEN_DETECTIONS)
    world.write().draw(42)
    return world


def small_world(root: Path) -> World:
    """Ten small images, wide and upright, with two to four boxes in different colours, which expressions name.

    The features of the annotations are in refcoco+/regions.packed. They depend on the colour.
    """
    rng = random.Random(4)
    world = World(root)
    splits = ["train"] * 5 + ["val"] * 2 + ["testA", "testA", "testB"]
    for image_id, split in enumerate(splits, start=1):
        colors = rng.sample(sorted(COLORS), 2 + image_id % 3)
        size = (120, 80) if image_id % 2 else (80, 120)
        step = 72 / len(colors)
        boxes = [[4 + k * step, rng.randint(4, 40), step - 4, rng.randint(16, 36)] for k in range(len(colors))]
        world.add_image(image_id, size, [[float(v) for v in box] for box in boxes])
        for k, color in enumerate(colors):
            world.add_reference(100 * image_id + k, [f"the {color} thing", f"{color} left"], split)
        x, y, w, h = boxes[0]
        world.detect(image_id, [x + 1, y + 1, w, h], [0, 60, 30, 20])
    world.write()
    folder = root / "refcoco+/regions"
    for image in world.images:
        refs = [r for r in world.references if r["image_id"] == image["id"]]
        colors = [next(c for c in COLORS if c in r["sentences"][0]["tokens"]) for r in refs]
        world.draw(image["id"], [COLORS[c] for c in colors])
        save_regions(folder, str(image["id"]), regions_of(world, image["id"], colors))
    pack(JsonRegions(folder), root / "refcoco+/regions.packed")
    return world


def regions_of(world: World, image_id: int, colors: list[str]) -> Regions:
    boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in world.of(image_id))]
    features = 0.1 * torch.rand(len(boxes), 2048, generator=torch.Generator().manual_seed(image_id))
    for row, color in zip(features, colors, strict=True):
        row[list(COLORS).index(color) :: len(COLORS)] += 1.0
    image = next(i for i in world.images if i["id"] == image_id)
    return Regions(torch.tensor(boxes), features, width=image["width"], height=image["height"])


def tiny_refcoco(world: Path, out: Path) -> dict[str, Any]:
    """Settings of a run of two epochs on `small_world` with its features."""
    settings = tiny_settings("refcoco/base_gt_boxes_4x16G.yaml", world, out)
    settings["DATASET"] |= {"REGION_PATH": str(world / "refcoco+/regions.packed")}
    settings["NETWORK"] |= {"IMAGE_FEAT_PRECOMPUTED": True, "IMAGE_PRETRAINED": "", "CLASSIFIER_DROPOUT": 0.1}
    settings["TRAIN"] |= {"BATCH_IMAGES": 8, "ASPECT_GROUPING": True}
    return settings

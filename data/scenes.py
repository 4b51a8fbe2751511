"""Write a small made-up world in the formats of the real data sets: `python -m data.scenes --out data/scenes-world`.

The folder can stand in for ./data/coco: pictures, COCO instances, VQA v2 questions and answers, region files with boxes
and features, an answer vocabulary and a word-piece vocabulary. The same parameters give the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import string
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from data.scene_description import COLORS, SHAPES, SIZES, Scene, generate_scene, render
from data.scene_questions import ANSWERS, Phrase, Question, ask
from data.scene_regions import region_boxes, region_features

MARKER = "world.json"
FOLDERS = ("train2014", "val2014", "test2015", "annotations", "vqa", "vgbua_res101_precomputed", "bert")


@dataclass(frozen=True)
class World:
    """What a world is made from: the seed, and the number of pictures of each split."""

    seed: int = 0
    train: int = 2500
    val: int = 200
    test: int = 50


@dataclass(frozen=True)
class Split:
    """Names of one split on disk. Image ids start at first_id, so a split does not depend on the size of another."""

    name: str
    first_id: int
    images_json: str
    region_folder: str
    has_answers: bool = True


SPLITS = {
    "train": Split("train2014", 1, "instances_train2014", "trainval2014_resnet101_faster_rcnn_genome"),
    "val": Split("val2014", 500_001, "instances_val2014", "trainval2014_resnet101_faster_rcnn_genome"),
    "test": Split("test2015", 900_001, "image_info_test2015", "test2015_resnet101_faster_rcnn_genome", False),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.scenes", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data/scenes-world"), help="folder to write")
    parser.add_argument("--seed", type=int, default=World.seed)
    for name in SPLITS:
        parser.add_argument(f"--{name}", type=int, default=getattr(World, name), help=f"number of {name} pictures")
    parser.add_argument("--force", action="store_true", help="write again over a world that is already in the folder")
    args = parser.parse_args(argv)
    world = World(args.seed, args.train, args.val, args.test)
    start = time.perf_counter()
    try:
        counts = write_world(args.out, world, force=args.force)
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
    if counts is None:
        print(f"{args.out} already holds this world; nothing to do (--force writes it again)")
        return
    megabytes = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file()) / 1e6
    for name, count in counts.items():
        print(f"{name:5} {count['pictures']:6} pictures {count['questions']:7} questions {count['regions']:7} regions")
    print(f"{args.out}: {megabytes:.0f} MB in {time.perf_counter() - start:.1f} s, {len(ANSWERS) + 1} answers")


def make_scene(world: World, image_id: int) -> Scene:
    """The scene of an image id; it depends on the seed and the id alone."""
    return generate_scene(_rng(world, "scene", image_id), image_id)


def make_scenes(world: World, split: str) -> list[Scene]:
    """All scenes of "train", "val" or "test"."""
    first = SPLITS[split].first_id
    return [make_scene(world, first + i) for i in range(getattr(world, split))]


def make_questions(world: World, scene: Scene) -> list[Question]:
    """The questions that a world asks about one of its scenes."""
    return ask(scene, _rng(world, "questions", scene.image_id))


def write_world(out: Path, world: World, force: bool = False) -> dict[str, dict[str, int]] | None:
    """Write all files of a world.

    Returns the number of pictures, questions and regions by split, or None when the folder already held this world.
    Raises FileExistsError when the folder has other things in it, ValueError for a size that cannot be written.
    """
    limit = SPLITS["val"].first_id - SPLITS["train"].first_id
    if min(world.train, world.val, world.test) < 0 or max(world.train, world.val, world.test) >= limit:
        raise ValueError(f"numbers of pictures must lie between 0 and {limit - 1}, not {world}")
    if not _clear_folder(out, world, force):
        return None
    _write_marker(out, world, complete=False)
    for folder in FOLDERS:
        (out / folder).mkdir()
    counts = {name: _write_split(out, world, name) for name in SPLITS}
    _pack_regions(out)
    (out / "vqa/answers_vqa.txt").write_text("\n".join(("<unk>", *ANSWERS)) + "\n", encoding="utf-8")
    (out / "bert/vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    _write_marker(out, world, complete=True)
    return counts


def vocabulary() -> list[str]:
    """Word pieces by line: special tokens where bert-base-uncased has them, characters, and the words of the world.

    With all characters and their ## forms, any other ASCII word splits into letters and never becomes [UNK].
    """
    lines = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = string.digits + string.ascii_lowercase
    lines += [*string.punctuation, *characters, *(f"##{c}" for c in characters)]
    words = (
        "what how many is are was there the a an of and or not in on at to with this that it its he she they who why "
    )
    words += "color shape size left right above below next near between thing things only same other because "
    words += "middle top bottom half picture image yes no one two three four five six zero"
    lines += [*words.split(), *SIZES, *COLORS, *SHAPES, *(Phrase(shape=s).plural for s in SHAPES)]
    return list(dict.fromkeys(lines))  # "a" is a letter and a word


def _write_split(out: Path, world: World, name: str) -> dict[str, int]:
    split = SPLITS[name]
    scenes = make_scenes(world, name)
    questions = {scene.image_id: make_questions(world, scene) for scene in scenes}
    regions = out / "vgbua_res101_precomputed" / split.region_folder
    regions.mkdir(exist_ok=True)
    region_count = 0
    for scene in scenes:
        picture = render(scene)
        picture.save(out / split.name / _file_name(split, scene), quality=92, subsampling=0)
        boxes = region_boxes(scene, _rng(world, "regions", scene.image_id))
        _write_json(regions / f"{scene.image_id}.json", _region_record(scene, picture, boxes))
        region_count += len(boxes)
    _write_json(out / "annotations" / f"{split.images_json}.json", coco_record(split, scenes))
    vqa = out / "vqa"
    _write_json(vqa / f"v2_OpenEnded_mscoco_{split.name}_questions.json", _questions_record(split, questions))
    if split.has_answers:
        _write_json(vqa / f"v2_mscoco_{split.name}_annotations.json", _answers_record(split, questions))
    return {
        "pictures": len(scenes),
        "questions": sum(len(asked) for asked in questions.values()),
        "regions": region_count,
    }


def _pack_regions(out: Path) -> None:
    """The packed store beside each folder of region files: what a training run reads."""
    from common.data.regions import open_regions, pack  # here, so that `--help` answers at once

    for folder in {split.region_folder for split in SPLITS.values()}:
        store = open_regions(out / "vgbua_res101_precomputed" / folder)
        if store.names():
            pack(store, out / "vgbua_res101_precomputed" / f"{folder}.packed", "float32")


def coco_record(split: Split, scenes: Sequence[Scene]) -> dict[str, Any]:
    """COCO instances of a split; one without answers has images and categories only."""
    record: dict[str, Any] = {
        "info": {"description": f"scenes {split.name}"},
        "licenses": [],
        "images": [
            {"id": s.image_id, "width": s.width, "height": s.height, "file_name": _file_name(split, s)} for s in scenes
        ],
        "categories": [{"id": i + 1, "name": shape, "supercategory": "shape"} for i, shape in enumerate(SHAPES)],
    }
    if not split.has_answers:
        return record
    record["annotations"] = [
        {
            "id": scene.image_id * 10 + i,
            "image_id": scene.image_id,
            "category_id": SHAPES.index(thing.shape) + 1,
            "segmentation": [[value for point in thing.polygon for value in point]],
            "area": round(_polygon_area(thing.polygon), 2),
            "bbox": [thing.box[0], thing.box[1], thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]],
            "iscrowd": 0,
        }
        for scene in scenes
        for i, thing in enumerate(scene.things)
    ]
    return record


def _questions_record(split: Split, questions: dict[int, list[Question]]) -> dict[str, Any]:
    rows = [
        {"image_id": image_id, "question": question.text, "question_id": image_id * 1000 + i}
        for image_id, asked in questions.items()
        for i, question in enumerate(asked)
    ]
    header = {"task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": split.name}
    return {"info": {"description": f"scenes {split.name}"}, "license": {}, **header, "questions": rows}


def _answers_record(split: Split, questions: dict[int, list[Question]]) -> dict[str, Any]:
    rows = [
        {
            "question_id": image_id * 1000 + i,
            "image_id": image_id,
            "question_type": question.kind,
            "answer_type": question.answer_type,
            "multiple_choice_answer": question.answer,
            "answers": [{"answer": question.answer, "answer_confidence": "yes", "answer_id": n + 1} for n in range(10)],
        }
        for image_id, asked in questions.items()
        for i, question in enumerate(asked)
    ]
    header = {"data_type": "mscoco", "data_subtype": split.name}
    return {"info": {"description": f"scenes {split.name}"}, "license": {}, **header, "annotations": rows}


def _region_record(scene: Scene, picture: Image.Image, boxes: np.ndarray) -> dict[str, Any]:
    whole = np.array([[0, 0, scene.width, scene.height]], np.float32)
    features = region_features(picture, np.concatenate([boxes, whole]))
    return {
        "image_id": scene.image_id,
        "image_w": scene.width,
        "image_h": scene.height,
        "num_boxes": len(boxes),
        "boxes": _base64(boxes),
        "features": _base64(features[:-1]),
        "image_box_feature": _base64(features[-1:]),
    }


def _clear_folder(out: Path, world: World, force: bool) -> bool:
    """Make `out` ready for a new world; False when it holds this very one. Only a folder with our marker is emptied."""
    marker = out / MARKER
    if marker.is_file():
        found = json.loads(marker.read_text())
        if found == _marker(world, complete=True) and not force:
            return False
        if found != _marker(world, found.get("complete")) and not force:
            raise FileExistsError(f"{out} holds a world made with other parameters, {found}; --force replaces it")
        for folder in FOLDERS:
            shutil.rmtree(out / folder, ignore_errors=True)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty and has no {MARKER}: it was not made here and is left alone")
    out.mkdir(parents=True, exist_ok=True)
    return True


def _marker(world: World, complete: bool) -> dict[str, Any]:
    return {"made_by": "data.scenes", **asdict(world), "complete": complete}


def _write_marker(out: Path, world: World, complete: bool) -> None:
    (out / MARKER).write_text(json.dumps(_marker(world, complete), indent=2) + "\n")


def _rng(world: World, purpose: str, image_id: int) -> Random:
    """A stream of its own for every purpose and picture, so that new questions leave the pictures as they were."""
    return Random(f"{world.seed}/{purpose}/{image_id}")


def _file_name(split: Split, scene: Scene) -> str:
    return f"COCO_{split.name}_{scene.image_id:012d}.jpg"


def _polygon_area(polygon: Sequence[tuple[float, float]]) -> float:
    """The shoelace formula."""
    pairs = zip(polygon, (*polygon[1:], polygon[0]), strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs)) / 2


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.astype("<f4").tobytes()).decode("ascii")


def _write_json(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, separators=(",", ":")), encoding="utf-8")


if __name__ == "__main__":
    main()

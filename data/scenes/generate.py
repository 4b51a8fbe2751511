"""Writes a small generated world in the formats of the real data sets: `python -m data.scenes --out data/scenes-world`.

The folder can replace ./data/coco, ./data/vcr and ./data/conceptual-captions: images, COCO instances, VQA v2
questions and answers, VCR questions with answers and rationales, RefCOCO+ expressions and detections, captions, a text
corpus, regions with boxes, features and class scores, an answer vocabulary and a word-piece vocabulary. The same
parameters give the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import json
import pickle
import shutil
import string
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from data.scenes.captions import caption, sentence
from data.scenes.description import (
    COLORS,
    SHAPES,
    SIZES,
    Scene,
    generate_scene,
    render,
)
from data.scenes.expressions import Expression, refer
from data.scenes.phrases import Phrase
from data.scenes.questions import ANSWERS, Question, ask
from data.scenes.reasoning import Problem, pose
from data.scenes.records import (
    REGION_FOLDER,
    SPLITS,
    answers_record,
    caption_records,
    coco_record,
    detection_records,
    image_name,
    questions_record,
    reference_records,
    vcr_annotations,
    vcr_metadata,
)
from data.scenes.regions import (
    class_scores,
    region_boxes,
    region_features,
    thing_boxes,
)

MARKER = "world.json"
FORMAT = 3  # version of the files
FOLDERS = (
    "train2014",
    "val2014",
    "test2015",
    "annotations",
    "bert",
    "vqa",
    "vcr",
    "refcoco+",
    "captions",
    "corpus",
    REGION_FOLDER,
)
SENTENCES = 2  # of the corpus, for each image


@dataclass(frozen=True)
class World:
    """The parameters of a world: the seed, and the number of images of each split."""

    seed: int = 0
    train: int = 2500
    val: int = 200
    test: int = 50


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.scenes", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("data/scenes-world"), help="folder to write")
    parser.add_argument("--seed", type=int, default=World.seed)
    for name in SPLITS:
        parser.add_argument(f"--{name}", type=int, default=getattr(World, name), help=f"number of {name} images")
    parser.add_argument("--force", action="store_true", help="replace a world that is in the folder")
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
        print(f"{name:5} " + " ".join(f"{number:7} {what}" for what, number in count.items()))
    print(f"{args.out}: {megabytes:.0f} MB in {time.perf_counter() - start:.1f} s, {len(ANSWERS) + 1} answers")


def make_scene(world: World, image_id: int) -> Scene:
    """Returns the scene of an image id, which depends on the seed and the id alone."""
    return generate_scene(_rng(world, "scene", image_id), image_id)


def make_scenes(world: World, split: str) -> list[Scene]:
    """Returns all scenes of "train", "val" or "test"."""
    first = SPLITS[split].first_id
    return [make_scene(world, first + i) for i in range(getattr(world, split))]


def make_questions(world: World, scene: Scene) -> list[Question]:
    """Returns the VQA questions about one scene of a world."""
    return ask(scene, _rng(world, "questions", scene.image_id))


def make_problems(world: World, scene: Scene) -> list[Problem]:
    """Returns the VCR questions about one scene of a world, with answers and rationales."""
    return pose(scene, _rng(world, "problems", scene.image_id))


def make_expressions(world: World, scene: Scene) -> list[list[Expression]]:
    """Returns the expressions for each thing of one scene of a world."""
    rng = _rng(world, "expressions", scene.image_id)
    return [refer(scene, i, rng) for i in range(len(scene.things))]


def make_captions(world: World, scene: Scene) -> list[str]:
    """Returns the captions of one scene of a world."""
    return caption(scene, _rng(world, "captions", scene.image_id))


def make_sentences(world: World, split: str) -> list[str]:
    """Returns the lines of the text corpus of "train" or "val", about scenes without images."""
    count = SENTENCES * getattr(world, split)
    rngs = (_rng(world, f"{split} sentences", i) for i in range(count))
    return [sentence(rng, lambda rng: generate_scene(rng, image_id=0)) for rng in rngs]


def write_world(out: Path, world: World, force: bool = False) -> dict[str, dict[str, int]] | None:
    """Writes all files of a world.

    Returns the numbers of images, regions, questions and so on by split, or None if the folder has this world already.
    Raises FileExistsError if the folder has other content, ValueError for a number of images that is out of range.
    """
    limit = SPLITS["val"].first_id - SPLITS["train"].first_id
    if min(world.train, world.val, world.test) < 0 or max(world.train, world.val, world.test) >= limit:
        raise ValueError(f"numbers of images must lie between 0 and {limit - 1}, not {world}")
    if not _clear_folder(out, world, force):
        return None
    _write_marker(out, world, complete=False)
    for folder in FOLDERS:
        (out / folder).mkdir()
    scenes = {name: make_scenes(world, name) for name in SPLITS}
    counts = {name: _write_images(out, world, name, scenes[name]) for name in SPLITS}
    _pack_regions(out)
    _write_vcr(out, world, scenes, counts)
    _write_refcoco(out, world, scenes["train"], counts)
    _write_captions(out, world, scenes, counts)
    (out / "vqa/answers_vqa.txt").write_text("\n".join(("<unk>", *ANSWERS)) + "\n", encoding="utf-8")
    (out / "bert/vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    _write_marker(out, world, complete=True)
    return counts


def vocabulary() -> list[str]:
    """Returns the lines of vocab.txt: special tokens at the ids of bert-base-uncased, characters, words of the world.

    All characters and their ## forms are in it, so that any other ASCII word splits into letters and is never [UNK].
    """
    lines = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = string.digits + string.ascii_lowercase
    lines += [*string.punctuation, *characters, *(f"##{c}" for c in characters)]
    words = (
        "what how many is are was there the a an of and or not in on at to with this that it its he she they who why "
    )
    words += "color shape size left right above below next near between thing things only same other because "
    words += "middle center top bottom half picture image yes no one two three four five six zero "
    words += "which where side have both its over under person "
    words += "casey riley jessie jackie avery jaime peyton kerry jody kendall frankie pat quinn"  # persons in VCR
    lines += [*words.split(), *SIZES, *COLORS, *SHAPES, *(Phrase(shape=s).plural for s in SHAPES)]
    return list(dict.fromkeys(lines))  # "a" is a character and a word


def _write_images(out: Path, world: World, name: str, scenes: Sequence[Scene]) -> dict[str, int]:
    """Writes the images of a split, their regions, COCO annotations and VQA v2 questions. Returns the counts."""
    split = SPLITS[name]
    questions = {scene.image_id: make_questions(world, scene) for scene in scenes}
    regions = out / REGION_FOLDER / split.region_folder
    regions.mkdir(exist_ok=True)
    region_count = 0
    for scene in scenes:
        image = render(scene)
        path = out / split.name / f"{image_name(split, scene.image_id)}.jpg"
        image.save(path, quality=92, subsampling=0)
        boxes = region_boxes(scene, _rng(world, "regions", scene.image_id))
        scores = class_scores(scene, boxes, _rng(world, "classes", scene.image_id))
        _write_json(regions / f"{scene.image_id}.json", _region_record(scene, image, boxes, scores))
        region_count += len(boxes)
    _write_json(out / "annotations" / f"{split.images_json}.json", coco_record(split, scenes))
    vqa = out / "vqa"
    _write_json(vqa / f"v2_OpenEnded_mscoco_{split.name}_questions.json", questions_record(split, questions))
    if split.has_answers:
        _write_json(vqa / f"v2_mscoco_{split.name}_annotations.json", answers_record(split, questions))
    return {
        "images": len(scenes),
        "regions": region_count,
        "questions": sum(len(asked) for asked in questions.values()),
        "problems": 0,
        "expressions": 0,
        "captions": 0,
        "sentences": 0,
    }


def _pack_regions(out: Path) -> None:
    """Writes a packed store beside each folder of region files. Training reads the store."""
    from common.regions.open import open_regions
    from common.regions.packed_store import pack  # imports torch: `--help` answers without it

    for folder in {split.region_folder for split in SPLITS.values()}:
        store = open_regions(out / REGION_FOLDER / folder)
        if store.names():
            pack(store, out / REGION_FOLDER / f"{folder}.packed", "float32")


def _write_vcr(out: Path, world: World, scenes: dict[str, list[Scene]], counts: dict[str, dict[str, int]]) -> None:
    """Writes annotations of each split, metadata beside the images, and the features of the boxes in the metadata."""
    entries: dict[str, tuple[Scene, np.ndarray]] = {}
    for name, split in SPLITS.items():
        rows: list[dict[str, Any]] = []
        for scene in scenes[name]:
            rng = _rng(world, "vcr boxes", scene.image_id)
            boxes = thing_boxes(scene, rng)
            scores = [round(rng.uniform(0.7, 1.0), 4) for _ in boxes]
            stem = image_name(split, scene.image_id)
            _write_json(out / split.name / f"{stem}.json", vcr_metadata(scene, boxes, scores))
            entries[stem] = (scene, boxes)
            rows += vcr_annotations(split, scene, make_problems(world, scene), first=len(rows))
        _write_lines(out / "vcr" / f"{split.vcr}.jsonl", map(_json, rows))
        counts[name]["problems"] = len(rows)
    _pack_scenes(out / "vcr/regions.packed", entries)


def _write_refcoco(out: Path, world: World, scenes: Sequence[Scene], counts: dict[str, dict[str, int]]) -> None:
    """Writes expressions and detections for the training images, and the features of their annotated boxes."""
    split, folder = SPLITS["train"], out / "refcoco+"
    expressions = {scene.image_id: make_expressions(world, scene) for scene in scenes}
    references = reference_records(split, scenes, expressions)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))
    _write_json(folder / "refs(unc).json", references)
    instances = coco_record(split, scenes)
    _write_json(folder / "instances.json", instances)
    detections: list[dict[str, Any]] = []
    for scene in scenes:
        rng = _rng(world, "detections", scene.image_id)
        detections += detection_records(scene, rng, region_boxes(scene, rng), first=len(detections))
    (folder / "proposal").mkdir()
    _write_json(folder / "proposal/res101_coco_minus_refer_notime_dets.json", detections)
    boxes: dict[int, list[list[float]]] = {scene.image_id: [] for scene in scenes}
    for annotation in instances["annotations"]:
        x, y, width, height = annotation["bbox"]
        boxes[annotation["image_id"]].append([x, y, x + width, y + height])
    entries = {str(scene.image_id): (scene, np.array(boxes[scene.image_id], np.float32)) for scene in scenes}
    _pack_scenes(folder / "regions.packed", entries)
    counts["train"]["expressions"] = sum(len(reference["sentences"]) for reference in references)


def _write_captions(out: Path, world: World, scenes: dict[str, list[Scene]], counts: dict[str, dict[str, int]]) -> None:
    """Writes the captions and the text corpus of the splits that have answers."""
    for name, split in SPLITS.items():
        if not split.has_answers:
            continue
        rows = [row for s in scenes[name] for row in caption_records(split, s, make_captions(world, s))]
        sentences = make_sentences(world, name)
        _write_lines(out / "captions" / f"{name}_frcnn.json", map(_json, rows))
        _write_lines(out / "corpus" / f"{name}.txt", sentences)
        counts[name] |= {"captions": len(rows), "sentences": len(sentences)}


def _pack_scenes(path: Path, entries: dict[str, tuple[Scene, np.ndarray]]) -> None:
    """Writes a packed store with the features of boxes [n, 4], nothing without images."""
    from common.regions.packed_store import pack
    from data.scenes.store import SceneRegions

    if entries:
        pack(SceneRegions(entries), path, "float16")


def _region_record(scene: Scene, image: Image.Image, boxes: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    whole = np.array([[0, 0, scene.width, scene.height]], np.float32)
    features = region_features(image, np.concatenate([boxes, whole]))
    return {
        "image_id": scene.image_id,
        "image_w": scene.width,
        "image_h": scene.height,
        "num_boxes": len(boxes),
        "boxes": _base64(boxes),
        "classes": _base64(scores),
        "features": _base64(features[:-1]),
        "image_box_feature": _base64(features[-1:]),
    }


def _clear_folder(out: Path, world: World, force: bool) -> bool:
    """Empties `out` for a new world. Returns False if it has this world already. Deletes only in a folder with
    MARKER."""
    marker = out / MARKER
    if marker.is_file():
        found = json.loads(marker.read_text())
        if found == _marker(world, complete=True) and not force:
            return False
        if found != _marker(world, found.get("complete")) and not force:
            raise FileExistsError(
                f"{out} has another world, {found}, not {_marker(world, complete=True)}; "
                f"`python -m data.scenes --out {out} --force` replaces it"
            )
        for folder in FOLDERS:
            shutil.rmtree(out / folder, ignore_errors=True)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty and has no {MARKER}: it is not a world and is not changed")
    out.mkdir(parents=True, exist_ok=True)
    return True


def _marker(world: World, complete: bool) -> dict[str, Any]:
    return {"made_by": "data.scenes", "format": FORMAT, **asdict(world), "complete": complete}


def _write_marker(out: Path, world: World, complete: bool) -> None:
    (out / MARKER).write_text(json.dumps(_marker(world, complete), indent=2) + "\n")


def _rng(world: World, purpose: str, image_id: int) -> Random:
    """Returns a generator for one purpose and one image, so that a change of the questions does not change the
    images."""
    return Random(f"{world.seed}/{purpose}/{image_id}")


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.astype("<f4").tobytes()).decode("ascii")


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_json(path: Path, record: Any) -> None:
    path.write_text(_json(record), encoding="utf-8")


def _json(record: Any) -> str:
    return json.dumps(record, separators=(",", ":"))


if __name__ == "__main__":
    main()

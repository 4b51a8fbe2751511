"""The demo: make a small world, train a small VL-BERT to answer questions about it, and show how well it does.

python scripts/demo_vqa.py            from the repository root, a few minutes on a CPU
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from common import checkpoint
from common.config import load_config
from common.run import load_trained, predict, run_test, run_training, train_folder
from common.task import load_task
from data.contact_sheet import Tile, contact_sheet
from data.scenes import SPLITS, World, write_world
from vqa.accuracy import evaluate_answers

CFG = Path("cfgs/vqa/scenes.yaml")
TINY = World(train=12, val=6, test=2)  # of --fast
TILES, WRONG_TILES = 12, 3

Rows = list[dict[str, Any]]
Answers = dict[int, str]  # by question id


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--world", type=Path, help="folder of the world, made if need be (default: that of the YAML)")
    parser.add_argument("--out", type=Path, help="folder of the run (default: OUTPUT_PATH of the YAML)")
    parser.add_argument("--fast", action="store_true", help="a tiny world and a few updates, to try the script itself")
    args = parser.parse_args(argv)
    if not CFG.is_file():
        parser.error(f"{CFG} is not here: start this from the repository root")
    start = time.perf_counter()
    changes: dict[str, Any] = {}
    if args.world or args.fast:
        changes |= world_keys(args.world or Path("output/scenes-fast/world"))
    if args.out or args.fast:
        changes["OUTPUT_PATH"] = str(args.out or "output/scenes-fast")
    if args.fast:
        changes |= {"TRAIN.MAX_STEPS": 3, "TRAIN.WARMUP_STEPS": 1, "TRAIN.BATCH_IMAGES": 8, "NUM_WORKERS_PER_GPU": 0}
    cfg = load_config("vqa", CFG, changes)
    root = Path(cfg.DATASET.DATASET_PATH)
    try:
        make_world(root, TINY if args.fast else World())
    except FileExistsError as error:
        parser.error(str(error))
    run(cfg, root, start)


def world_keys(root: Path) -> dict[str, str]:
    """The config keys that point into the folder of a world."""
    return {
        "DATASET.DATASET_PATH": str(root),
        "DATASET.ANSWER_VOCAB_FILE": str(root / "vqa/answers_vqa.txt"),
        "NETWORK.BERT_MODEL_NAME": str(root / "bert"),
    }


def make_world(root: Path, world: World) -> None:
    """Write the world unless it is there."""
    counts = write_world(root, world)
    made = "is there" if counts is None else f"made: {counts['train']['questions']} training questions"
    print(f"world {root} {made}", flush=True)


def run(cfg: Any, root: Path, start: float) -> None:
    """Train, predict, score, and show."""
    task, folder = load_task("vqa"), train_folder(cfg, CFG)
    if checkpoint.epoch_path(folder, cfg.MODEL_PREFIX, cfg.TRAIN.END_EPOCH - 1).is_file():
        print(f"a finished run is in {folder}: using it (remove the folder to train again)", flush=True)
    run_training(task, cfg, CFG)

    logging.getLogger().setLevel(logging.WARNING)  # from here on the table is the news
    loaded = load_trained(task, cfg, CFG)
    records, _ = predict(task, cfg, loaded, "val")
    result = run_test(task, cfg, CFG).path

    train, val = read_rows(root, "train"), read_rows(root, "val")
    answers = {
        "majority": guess(train, val, blind=False),
        "blind": guess(train, val, blind=True),
        "VL-BERT": {record["id"]: record["answer"] for record in records},
    }
    scores = {name: evaluate_answers(given, val) for name, given in answers.items()}
    sheet = folder / "answers.png"
    draw_answers(val, answers["VL-BERT"], root, sheet)
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")

    print(f"\nAccuracy in percent on {len(val)} questions about {len({r['image_id'] for r in val})} held-out pictures")
    print("majority: the most frequent answer; blind: the most frequent one to the same words, without the picture\n")
    print(format_table(scores))
    print(f"\nmodel     {loaded.source}\nresults   {result} (test2015)\npictures  {sheet}")
    print(f"wall time {time.perf_counter() - start:.0f} s")


def read_rows(root: Path, split: str) -> Rows:
    """The annotations of a split, each with the text of its question."""
    name = SPLITS[split].name
    questions = json.loads((root / f"vqa/v2_OpenEnded_mscoco_{name}_questions.json").read_text())["questions"]
    texts = {question["question_id"]: question["question"] for question in questions}
    annotations = json.loads((root / f"vqa/v2_mscoco_{name}_annotations.json").read_text())["annotations"]
    return [annotation | {"question": texts[annotation["question_id"]]} for annotation in annotations]


def guess(train: Rows, val: Rows, blind: bool) -> Answers:
    """Answers of someone who sees no picture: the most frequent training answer, to the same words where blind.

    Words that training did not have get the most frequent answer to their question type.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        for key in ("all", f"type {row['question_type']}", f"text {row['question']}"):
            counts[key][row["multiple_choice_answer"]] += 1
    best = {key: counter.most_common(1)[0][0] for key, counter in counts.items()}

    def answer(row: dict[str, Any]) -> str:
        keys = (f"text {row['question']}", f"type {row['question_type']}") if blind else ()
        return next(best[key] for key in (*keys, "all") if key in best)

    return {row["question_id"]: answer(row) for row in val}


def format_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each question type and a last one for all; a column for each entry of `scores`."""
    first = next(iter(scores.values()))
    lines = [f"{'question type':<16}{'questions':>10}" + "".join(f"{name + ' %':>12}" for name in scores)]
    for kind in first["question_type"]:
        row = [score["question_type"][kind] for score in scores.values()]
        lines.append(f"{kind:<16}{row[0]['count']:>10}" + "".join(f"{cell['accuracy']:>12.1f}" for cell in row))
    row = [score["overall"] for score in scores.values()]
    lines.append(f"{'overall':<16}{row[0]['count']:>10}" + "".join(f"{cell['accuracy']:>12.1f}" for cell in row))
    return "\n".join(lines)


def pick_rows(rows: Rows, answers: Answers) -> Rows:
    """Up to TILES questions of different pictures, in turn of all types; up to WRONG_TILES answered wrong, last."""
    shuffled = Random(0).sample(rows, len(rows))
    wrong = [row for row in shuffled if answers[row["question_id"]] != row["multiple_choice_answer"]]
    right = [row for row in shuffled if answers[row["question_id"]] == row["multiple_choice_answer"]]
    picked: Rows = []
    _pick(picked, wrong, WRONG_TILES)
    count = len(picked)
    _pick(picked, right, TILES - count)
    return picked[count:] + picked[:count]


def _pick(picked: Rows, rows: Rows, count: int) -> None:
    """Append up to `count` rows of pictures not yet picked, always of the type that was picked least."""
    used, types = {row["image_id"] for row in picked}, Counter[str]()
    for _ in range(count):
        free = [row for row in rows if row["image_id"] not in used]
        if not free:
            return
        row = min(free, key=lambda row: types[row["question_type"]])
        picked.append(row)
        used.add(row["image_id"])
        types[row["question_type"]] += 1


def draw_answers(rows: Rows, answers: Answers, root: Path, path: Path) -> None:
    """A sheet of held-out pictures with question, answer and truth."""
    name, tiles = SPLITS["val"].name, []
    for row in pick_rows(rows, answers):
        answer, truth = answers[row["question_id"]], row["multiple_choice_answer"]
        lines = [f"VL-BERT: {answer}"] if answer == truth else [f"VL-BERT: {answer}", f"truth: {truth}"]
        picture = root / name / f"COCO_{name}_{row['image_id']:012d}.jpg"
        tiles.append(Tile(picture, row["question"], lines, correct=answer == truth))
    contact_sheet(tiles).save(path)


if __name__ == "__main__":
    main()

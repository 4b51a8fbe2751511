"""The demo: make a small world, train a small VL-BERT to answer questions about it, and show how well it does.

python scripts/demo_vqa.py            from the repository root, a few minutes on a CPU
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.run import predict, run_test
from data import demo
from data.contact_sheet import Tile, contact_sheet
from data.scene_records import SPLITS, image_name
from vqa.accuracy import evaluate_answers

CFG = Path("cfgs/vqa/scenes.yaml")
WORLD_FILES = {
    "DATASET.DATASET_PATH": "",
    "DATASET.ANSWER_VOCAB_FILE": "vqa/answers_vqa.txt",
    "NETWORK.BERT_MODEL_NAME": "bert",
}

Rows = list[dict[str, Any]]
Answers = dict[int, str]  # by question id


def main(argv: Sequence[str] | None = None) -> None:
    run = demo.start(argv, __doc__.split("\n")[0], "vqa", [CFG], WORLD_FILES)
    (net,) = run.nets
    loaded = demo.train(net)
    records, _ = predict(net.task, net.cfg, loaded, "val")
    result = run_test(net.task, net.cfg, net.path)

    training, rows = read_rows(run.world, "train"), read_rows(run.world, "val")
    answers = {
        "majority": guess(training, rows, blind=False),
        "blind": guess(training, rows, blind=True),
        "VL-BERT": {record["id"]: record["answer"] for record in records},
    }
    scores = {name: evaluate_answers(given, rows) for name, given in answers.items()}
    sheet = net.folder / "answers.png"
    draw_answers(rows, answers["VL-BERT"], run.world, sheet)
    demo.write_scores(net, scores)

    pictures = len({row["image_id"] for row in rows})
    print(f"\nAccuracy in percent on {len(rows)} questions about {pictures} held-out pictures")
    print("majority: the most frequent answer; blind: the most frequent one to the same words, without the picture\n")
    print(table(scores))
    print(f"\nmodel     {loaded.source}\nresults   {result.path} ({SPLITS['test'].name})\npictures  {sheet}")
    print(f"wall time {run.seconds:.0f} s")


def read_rows(world: Path, split: str) -> Rows:
    """The annotations of a split, each with the text of its question."""
    name = SPLITS[split].name
    questions = json.loads((world / f"vqa/v2_OpenEnded_mscoco_{name}_questions.json").read_text())["questions"]
    texts = {question["question_id"]: question["question"] for question in questions}
    annotations = json.loads((world / f"vqa/v2_mscoco_{name}_annotations.json").read_text())["annotations"]
    return [annotation | {"question": texts[annotation["question_id"]]} for annotation in annotations]


def guess(training: Rows, rows: Rows, blind: bool) -> Answers:
    """Answers of someone who sees no picture: the most frequent training answer, to the same words where blind.

    Words that training did not have get the most frequent answer to their question type.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in training:
        for key in ("all", f"type {row['question_type']}", f"text {row['question']}"):
            counts[key][row["multiple_choice_answer"]] += 1
    best = {key: counter.most_common(1)[0][0] for key, counter in counts.items()}

    def answer(row: dict[str, Any]) -> str:
        keys = (f"text {row['question']}", f"type {row['question_type']}") if blind else ()
        return next(best[key] for key in (*keys, "all") if key in best)

    return {row["question_id"]: answer(row) for row in rows}


def table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each question type and a last one for all; a column for each entry of `scores`."""
    kinds = next(iter(scores.values()))["question_type"]
    cells = [(kind, [score["question_type"][kind] for score in scores.values()]) for kind in kinds]
    cells.append(("overall", [score["overall"] for score in scores.values()]))
    rows = [[kind, found[0]["count"], *(cell["accuracy"] for cell in found)] for kind, found in cells]
    return demo.format_table(["question type", "questions", *(f"{name} %" for name in scores)], rows)


def draw_answers(rows: Rows, answers: Answers, world: Path, path: Path) -> None:
    """A sheet of held-out pictures with question, answer and truth."""
    split, tiles = SPLITS["val"], []
    for row in rows:
        answer, truth = answers[row["question_id"]], row["multiple_choice_answer"]
        lines = [f"VL-BERT: {answer}"] if answer == truth else [f"VL-BERT: {answer}", f"truth: {truth}"]
        picture = world / split.name / f"{image_name(split, row['image_id'])}.jpg"
        tiles.append((row["question_type"], Tile(picture, row["question"], lines, correct=answer == truth)))
    contact_sheet(demo.pick_tiles(tiles)).save(path)


if __name__ == "__main__":
    main()

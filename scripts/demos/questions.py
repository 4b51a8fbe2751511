"""Questions in the demos: reading those of the made-up world, guesses without an image, accuracies, a contact sheet."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data.scenes.records import SPLITS
from scripts.demos.contact_sheet import Tile, contact_sheet
from scripts.demos.shared import format_table, pick_tiles
from vqa.accuracy import evaluate_answers

CFG = Path("cfgs/vqa/scenes.yaml")
WORLD_FILES = {
    "DATASET.DATASET_PATH": "",
    "DATASET.ANSWER_VOCAB_FILE": "vqa/answers_vqa.txt",
    "NETWORK.BERT_MODEL_NAME": "bert",
}

Questions = list[dict[str, Any]]  # entries of the annotations file, each with the text of its question
Answers = dict[int, str]  # by question id


def read_questions(world: Path, split: str) -> Questions:
    """The questions of a split, in the order of the annotations."""
    name = SPLITS[split].name
    questions = json.loads((world / f"vqa/v2_OpenEnded_mscoco_{name}_questions.json").read_text())["questions"]
    texts = {question["question_id"]: question["question"] for question in questions}
    annotations = json.loads((world / f"vqa/v2_mscoco_{name}_annotations.json").read_text())["annotations"]
    return [annotation | {"question": texts[annotation["question_id"]]} for annotation in annotations]


def guess(training: Questions, asked: Questions, blind: bool) -> Answers:
    """Answers without a look at the image: the most frequent training answer, with `blind` to the same words.

    New words get the most frequent answer to their question type.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question in training:
        for key in ("all", f"type {question['question_type']}", f"text {question['question']}"):
            counts[key][question["multiple_choice_answer"]] += 1
    best = {key: counter.most_common(1)[0][0] for key, counter in counts.items()}

    def answer(question: dict[str, Any]) -> str:
        keys = (f"text {question['question']}", f"type {question['question_type']}") if blind else ()
        return next(best[key] for key in (*keys, "all") if key in best)

    return {question["question_id"]: answer(question) for question in asked}


def compare(training: Questions, asked: Questions, answers: Answers) -> dict[str, dict[str, Any]]:
    """Accuracies of two guesses and of a model, as `evaluate_answers` returns them. answers: those of the model."""
    given = {
        "majority": guess(training, asked, blind=False),
        "blind": guess(training, asked, blind=True),
        "VL-BERT": answers,
    }
    return {name: evaluate_answers(found, asked) for name, found in given.items()}


def print_comparison(scores: Mapping[str, Mapping[str, Any]], asked: Questions) -> None:
    """Print the table of `compare` and what its columns are."""
    images = len({question["image_id"] for question in asked})
    print(f"\nAccuracy in percent on {len(asked)} questions about {images} held-out images")
    print("majority: the most frequent answer; blind: the most frequent one to the same words, without the image\n")
    print(accuracy_table(scores))


def draw_answers(asked: Questions, answers: Answers, image: Callable[[dict[str, Any]], Path], path: Path) -> None:
    """Save a sheet of images with question, answer and truth. image: the file for an entry of `asked`."""
    tiles = []
    for question in asked:
        answer, truth = answers[question["question_id"]], question["multiple_choice_answer"]
        lines = [f"VL-BERT: {answer}"] if answer == truth else [f"VL-BERT: {answer}", f"truth: {truth}"]
        tile = Tile(image(question), question["question"], lines, correct=answer == truth)
        tiles.append((question["question_type"], tile))
    contact_sheet(pick_tiles(tiles)).save(path)


def accuracy_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """A table with a line for each question type and one for all, and a column for each entry of `scores`."""
    kinds = next(iter(scores.values()))["question_type"]
    cells = [(kind, [score["question_type"][kind] for score in scores.values()]) for kind in kinds]
    cells.append(("overall", [score["overall"] for score in scores.values()]))
    rows = [[kind, found[0]["count"], *(cell["accuracy"] for cell in found)] for kind, found in cells]
    return format_table(["question type", "questions", *(f"{name} %" for name in scores)], rows)

"""The demo of VCR: train a small VL-BERT to choose answers about a made-up world, and another to choose rationales.

python scripts/demo_vcr.py            from the repository root, some minutes on a CPU
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.train.run import predict, run_test
from data.scenes.records import SPLITS
from scripts.demos import shared as demo
from scripts.demos.contact_sheet import (
    GREEN,
    GREY,
    INK,
    RED,
    Line,
    Mark,
    Tile,
    contact_sheet,
)

CFGS = (Path("cfgs/vcr/scenes_q2a.yaml"), Path("cfgs/vcr/scenes_qa2r.yaml"))
WORLD_FILES = {
    "DATASET.DATASET_PATH": "",
    "DATASET.REGION_PATH": "vcr/regions.packed",
    "NETWORK.BERT_MODEL_NAME": "bert",
}
PARTS = ("answer", "rationale")  # the choices of each config
NAMES = ("Q->A", "QA->R", "Q->AR")

Question = dict[str, Any]  # a line of the annotations
Tokens = Sequence[str | list[int]]


def main(argv: Sequence[str] | None = None) -> None:
    run = demo.start(argv, __doc__.split("\n")[0], "vcr", CFGS, WORLD_FILES)
    questions, training = read_questions(run.world, "val"), read_questions(run.world, "train")
    hits: dict[str, dict[str, list[bool]]] = {"blind": {}, "VL-BERT": {}}
    logits: dict[str, dict[str, list[float]]] = {}
    sources, results = [], []
    for net, part, name in zip(run.nets, PARTS, NAMES, strict=False):
        loaded = demo.train(net)
        records, _ = predict(net.task, net.cfg, loaded, "val")
        logits[part] = {record["id"]: record["logits"] for record in records}
        labels = [question[f"{part}_label"] for question in questions]
        chosen = [best(logits[part][question["annot_id"]]) for question in questions]
        hits["VL-BERT"][name] = [a == b for a, b in zip(chosen, labels, strict=True)]
        hits["blind"][name] = [a == b for a, b in zip(guess(training, questions, part), labels, strict=True)]
        sources.append(str(loaded.source))
        results.append(str(run_test(net.task, net.cfg, net.path).path))
    for found in hits.values():
        found["Q->AR"] = [a and b for a, b in zip(found["Q->A"], found["QA->R"], strict=True)]

    net = run.nets[0]
    sheet = net.folder / "answers.png"
    draw_answers(questions, logits["answer"], run.world, sheet)
    demo.write_scores(net, {who: {name: demo.percent(found) for name, found in by.items()} for who, by in hits.items()})
    images = len({question["img_fn"] for question in questions})
    print(f"\nRight choices in percent on {len(questions)} questions about {images} held-out images")
    print("blind: the choice whose words were most often right after the same question, without the image\n")
    print(choice_table(questions, hits))
    print(f"\nmodels    {sources[0]}\n          {sources[1]}")
    print(f"results   {results[0]} ({SPLITS['test'].name})\n          {results[1]}\nimages    {sheet}")
    print(f"wall time {run.seconds:.0f} s")


def read_questions(world: Path, split: str) -> list[Question]:
    return [json.loads(line) for line in (world / f"vcr/{split}.jsonl").read_text().splitlines()]


def best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda i: scores[i])


def guess(training: Sequence[Question], asked: Sequence[Question], part: str) -> list[int]:
    """Choices without a look at the image: the words that were right most often after the words of the question.

    Things count by their place in the sentence, not by their number. New words count as chance.
    """
    right, seen = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for question in training:
        for i, choice in enumerate(question[f"{part}_choices"]):
            key = (words(question["question"]), words(choice))
            seen[key] += 1
            right[key] += i == question[f"{part}_label"]
    guesses = []
    for question in asked:
        keys = [(words(question["question"]), words(choice)) for choice in question[f"{part}_choices"]]
        guesses.append(best([right[key] / seen[key] if seen[key] else 1 / len(keys) for key in keys]))
    return guesses


def words(tokens: Tokens) -> str:
    """The text with an underscore for each reference."""
    return " ".join(token if isinstance(token, str) else "_" for token in tokens)


def choice_table(questions: Sequence[Question], hits: Mapping[str, Mapping[str, Sequence[bool]]]) -> str:
    """A table with a line for each kind of question, one for all and one for chance; columns by chooser and part."""
    by_kind: defaultdict[str, list[int]] = defaultdict(list)
    for i, question in enumerate(questions):
        by_kind[question["question_type"]].append(i)
    columns = [(who, name) for name in NAMES for who in hits]
    lines: list[list[str | int | float]] = [
        [kind, len(chosen), *(demo.percent([hits[who][name][i] for i in chosen]) for who, name in columns)]
        for kind, chosen in (*sorted(by_kind.items()), ("all", list(range(len(questions)))))
    ]
    chance = {"Q->A": 25.0, "QA->R": 25.0, "Q->AR": 6.25}
    lines.append(["chance", "", *(chance[name] for _, name in columns)])
    return demo.format_table(["question", "number", *(f"{name} {who}" for who, name in columns)], lines)


def draw_answers(questions: Sequence[Question], logits: Mapping[str, Sequence[float]], world: Path, path: Path) -> None:
    """Save a sheet of held-out images with numbered boxes, the question, and its answers with their probabilities."""
    tiles = []
    folder = world / SPLITS["val"].name
    for question in questions:
        scores = softmax(logits[question["annot_id"]])
        label, chosen = question["answer_label"], best(scores)
        boxes = json.loads((folder / question["metadata_fn"]).read_text())["boxes"]
        marks = [Mark((x1, y1, x2, y2), str(i + 1), INK) for i, (x1, y1, x2, y2, _) in enumerate(boxes)]
        lines = []
        for i, (choice, score) in enumerate(zip(question["answer_choices"], scores, strict=True)):
            color = GREEN if i == label else RED if i == chosen else GREY
            lines.append(Line(f"{100 * score:.0f}%  {plain(choice)}", color, score))
        tile = Tile(folder / question["img_fn"], plain(question["question"]), lines, chosen == label, marks)
        tiles.append((question["question_type"], tile))
    contact_sheet(demo.pick_tiles(tiles), tile_width=300).save(path)


def plain(tokens: Tokens) -> str:
    """The text as a sentence, with numbers from 1 for things: "Where is [3], seen from [1]?" """
    text = " ".join(t if isinstance(t, str) else " and ".join(f"[{i + 1}]" for i in t) for t in tokens)
    for mark in ".,?":
        text = text.replace(f" {mark}", mark)
    return text


def softmax(logits: Sequence[float]) -> list[float]:
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / sum(powers) for power in powers]


if __name__ == "__main__":
    main()

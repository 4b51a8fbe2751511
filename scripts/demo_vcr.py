"""The demo of VCR: train a small VL-BERT to answer questions on a made-up world, and another to say why.

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
PARTS = ("answer", "rationale")  # what each config chooses
NAMES = ("Q->A", "QA->R", "Q->AR")

Row = dict[str, Any]  # a line of the annotations
Tokens = Sequence[str | list[int]]


def main(argv: Sequence[str] | None = None) -> None:
    run = demo.start(argv, __doc__.split("\n")[0], "vcr", CFGS, WORLD_FILES)
    rows, training = read_rows(run.world, "val"), read_rows(run.world, "train")
    hits: dict[str, dict[str, list[bool]]] = {"blind": {}, "VL-BERT": {}}
    logits: dict[str, dict[str, list[float]]] = {}
    sources, results = [], []
    for net, part, name in zip(run.nets, PARTS, NAMES, strict=False):
        loaded = demo.train(net)
        records, _ = predict(net.task, net.cfg, loaded, "val")
        logits[part] = {record["id"]: record["logits"] for record in records}
        labels = [row[f"{part}_label"] for row in rows]
        chosen = [best(logits[part][row["annot_id"]]) for row in rows]
        hits["VL-BERT"][name] = [a == b for a, b in zip(chosen, labels, strict=True)]
        hits["blind"][name] = [a == b for a, b in zip(guess(training, rows, part), labels, strict=True)]
        sources.append(str(loaded.source))
        results.append(str(run_test(net.task, net.cfg, net.path).path))
    for found in hits.values():
        found["Q->AR"] = [a and b for a, b in zip(found["Q->A"], found["QA->R"], strict=True)]

    net = run.nets[0]
    sheet = net.folder / "answers.png"
    draw_answers(rows, logits["answer"], run.world, sheet)
    demo.write_scores(net, {who: {name: demo.percent(found) for name, found in by.items()} for who, by in hits.items()})
    images = len({row["img_fn"] for row in rows})
    print(f"\nRight choices in percent on {len(rows)} questions about {images} held-out images")
    print("blind: the choice whose words were most often right after the same question, without the image\n")
    print(table(rows, hits))
    print(f"\nmodels    {sources[0]}\n          {sources[1]}")
    print(f"results   {results[0]} ({SPLITS['test'].name})\n          {results[1]}\npictures  {sheet}")
    print(f"wall time {run.seconds:.0f} s")


def read_rows(world: Path, split: str) -> list[Row]:
    return [json.loads(line) for line in (world / f"vcr/{split}.jsonl").read_text().splitlines()]


def best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda i: scores[i])


def guess(training: Sequence[Row], rows: Sequence[Row], part: str) -> list[int]:
    """Choices of someone who sees no image: those whose words were right most often, after the words of the question.

    Things count by their place in the sentence, not by their number. Words that training did not have count as chance.
    """
    right, seen = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for row in training:
        for i, choice in enumerate(row[f"{part}_choices"]):
            key = (words(row["question"]), words(choice))
            seen[key] += 1
            right[key] += i == row[f"{part}_label"]
    guesses = []
    for row in rows:
        keys = [(words(row["question"]), words(choice)) for choice in row[f"{part}_choices"]]
        guesses.append(best([right[key] / seen[key] if seen[key] else 1 / len(keys) for key in keys]))
    return guesses


def words(tokens: Tokens) -> str:
    """The text with an underscore for each reference."""
    return " ".join(token if isinstance(token, str) else "_" for token in tokens)


def table(rows: Sequence[Row], hits: Mapping[str, Mapping[str, Sequence[bool]]]) -> str:
    """One line for each kind of question, one for all, and what chance gives; columns by who chose and what."""
    by_kind: defaultdict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        by_kind[row["question_type"]].append(i)
    columns = [(who, name) for name in NAMES for who in hits]
    lines: list[list[str | int | float]] = [
        [kind, len(chosen), *(demo.percent([hits[who][name][i] for i in chosen]) for who, name in columns)]
        for kind, chosen in (*sorted(by_kind.items()), ("all", list(range(len(rows)))))
    ]
    chance = {"Q->A": 25.0, "QA->R": 25.0, "Q->AR": 6.25}
    lines.append(["chance", "", *(chance[name] for _, name in columns)])
    return demo.format_table(["question", "number", *(f"{name} {who}" for who, name in columns)], lines)


def draw_answers(rows: Sequence[Row], logits: Mapping[str, Sequence[float]], world: Path, path: Path) -> None:
    """A sheet of held-out images with numbered boxes, the question, and its answers with their probabilities."""
    tiles = []
    folder = world / SPLITS["val"].name
    for row in rows:
        scores = softmax(logits[row["annot_id"]])
        label, chosen = row["answer_label"], best(scores)
        boxes = json.loads((folder / row["metadata_fn"]).read_text())["boxes"]
        marks = [Mark((x1, y1, x2, y2), str(i + 1), INK) for i, (x1, y1, x2, y2, _) in enumerate(boxes)]
        lines = []
        for i, (choice, score) in enumerate(zip(row["answer_choices"], scores, strict=True)):
            color = GREEN if i == label else RED if i == chosen else GREY
            lines.append(Line(f"{100 * score:.0f}%  {plain(choice)}", color, score))
        tile = Tile(folder / row["img_fn"], plain(row["question"]), lines, chosen == label, marks)
        tiles.append((row["question_type"], tile))
    contact_sheet(demo.pick_tiles(tiles), tile_width=300).save(path)


def plain(tokens: Tokens) -> str:
    """The text as it is read, things by their numbers from 1: "Where is [3], seen from [1]?" """
    text = " ".join(t if isinstance(t, str) else " and ".join(f"[{i + 1}]" for i in t) for t in tokens)
    for mark in ".,?":
        text = text.replace(f" {mark}", mark)
    return text


def softmax(logits: Sequence[float]) -> list[float]:
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / sum(powers) for power in powers]


if __name__ == "__main__":
    main()

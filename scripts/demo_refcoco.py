"""The demo of RefCOCO+: train a small VL-BERT to find the referent of an expression in an image of a made-up world.

python scripts/demo_refcoco.py            from the repository root, a few minutes on a CPU
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.train.run import predict, run_test
from refcoco.outputs import accuracies
from scripts.demos import shared as demo
from scripts.demos.contact_sheet import (
    GREEN,
    RED,
    Line,
    Mark,
    Tile,
    contact_sheet,
)

CFG = Path("cfgs/refcoco/scenes.yaml")
WORLD_FILES = {
    "DATASET.DATASET_PATH": "",
    "DATASET.REGION_PATH": "refcoco+/regions.packed",
    "NETWORK.BERT_MODEL_NAME": "bert",
}
SPLITS = ("val", "testA", "testB")


@dataclass(frozen=True)
class Reference:
    """An expression and the things, annotations, of its image.

    target: number of the referent. things: category and area in pixels of each. boxes: xyxy in pixels of each.
    """

    sent_id: int
    text: str
    kind: str
    image_id: int
    split: str
    target: int
    things: tuple[tuple[int, float], ...]
    boxes: tuple[tuple[float, float, float, float], ...]


def main(argv: Sequence[str] | None = None) -> None:
    run = demo.start(argv, __doc__.split("\n")[0], "refcoco", [CFG], WORLD_FILES)
    (net,) = run.nets
    loaded = demo.train(net)
    references = read_references(run.world)
    training = [reference for reference in references if reference.split == "train"]
    scores, hits_by_kind, tiles = {}, defaultdict(list), []
    for split in SPLITS:
        asked = [reference for reference in references if reference.split == split]
        records, dataset = predict(net.task, net.with_keys({"DATASET.TEST_IMAGE_SET": split}).cfg, loaded, "test")
        chosen = {record["id"]: record for record in records}
        accuracy = accuracies(records, dataset)
        scores[split] = {
            "expressions": len(asked),
            "random": demo.percent([1 / len(reference.things) for reference in asked]),
            "no words": demo.percent(right(asked, guess_without_words(training, asked))),
            "no image": demo.percent(right(asked, guess_without_image(training, asked))),
            "exact": accuracy["exact"],
            "IoU >= 0.5": accuracy["overlap"],
        }
        guesses = [number(chosen[reference.sent_id]["candidate"], net) for reference in asked]
        for reference, hit in zip(asked, right(asked, guesses), strict=True):
            hits_by_kind[reference.kind].append(hit)
            image = dataset.image_path(reference.image_id)
            tiles.append((reference.kind, tile(reference, chosen[reference.sent_id], hit, image)))
    result = run_test(net.task, net.cfg, net.path)
    sheet = net.folder / "expressions.png"
    contact_sheet(demo.pick_tiles(tiles)).save(sheet)
    demo.write_scores(net, scores)

    print("\nExpressions with the right thing, in percent, on held-out images; all things of an image are candidates")
    print("random: any thing; no words: the most frequent referent by shape and size;")
    print("no image: the most frequent number of the referent for these words\n")
    print(demo.format_table(("split", *scores["val"]), [(split, *row.values()) for split, row in scores.items()]))
    print()
    rows = [(kind, len(hits), demo.percent(hits)) for kind, hits in sorted(hits_by_kind.items())]
    print(demo.format_table(("words of", "expressions", "exact"), rows))
    print(f"\nmodel     {loaded.source}\nresults   {result.path}\nimages    {sheet}")
    print(f"wall time {run.seconds:.0f} s")


def read_references(world: Path) -> list[Reference]:
    """All expressions of a world, in file order."""
    things = defaultdict(list)
    for annotation in json.loads((world / "annotations/instances_train2014.json").read_text())["annotations"]:
        things[annotation["image_id"]].append(annotation)
    references = []
    for row in json.loads((world / "refcoco+/refs(unc).json").read_text()):
        found = things[row["image_id"]]
        target = [annotation["id"] for annotation in found].index(row["ann_id"])
        looks = tuple((annotation["category_id"], annotation["area"]) for annotation in found)
        boxes = tuple((x, y, x + w, y + h) for x, y, w, h in (annotation["bbox"] for annotation in found))
        place = (row["image_id"], row["split"], target, looks, boxes)
        references += [Reference(s["sent_id"], s["sent"], s["kind"], *place) for s in row["sentences"]]
    return references


def number(candidate: int, net: demo.Net) -> int:
    """The number of a thing from the number of a candidate; -1 for the whole image."""
    return candidate - 1 if net.cfg.DATASET.ADD_IMAGE_AS_A_BOX else candidate


def right(asked: Sequence[Reference], guesses: Iterable[int]) -> list[bool]:
    return [guess == reference.target for reference, guess in zip(asked, guesses, strict=True)]


def guess_without_words(training: Sequence[Reference], asked: Sequence[Reference]) -> list[int]:
    """The thing whose category and rank by area were most often the referent in training, relative to their number."""
    meant, there = Counter[tuple[int, int, int]](), Counter[tuple[int, int, int]]()
    for reference in training:
        looks = ranked(reference)
        there.update(looks)
        meant[looks[reference.target]] += 1
    rates = {look: meant[look] / count for look, count in there.items()}
    guesses = []
    for reference in asked:
        looks = ranked(reference)
        guesses.append(max(range(len(looks)), key=lambda i: rates.get(looks[i], 0.0)))  # noqa: B023
    return guesses


def ranked(reference: Reference) -> list[tuple[int, int, int]]:
    """(category, rank by area from 0 for the largest, number of things) of each thing."""
    order = sorted(range(len(reference.things)), key=lambda i: -reference.things[i][1])
    return [(thing[0], order.index(i), len(order)) for i, thing in enumerate(reference.things)]


def guess_without_image(training: Sequence[Reference], asked: Sequence[Reference]) -> list[int]:
    """The most frequent number of the referent for the same words in training; for new words, for all words."""
    counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for reference in training:
        counts[reference.text][reference.target] += 1
        counts[""][reference.target] += 1
    return [(counts.get(reference.text) or counts[""]).most_common(1)[0][0] for reference in asked]


def tile(reference: Reference, record: dict[str, Any], hit: bool, image: str) -> Tile:
    """The image with the chosen box, and with the box of the referent if another one was chosen."""
    marks = [Mark(tuple(record["box"]), "" if hit else "VL-BERT", GREEN if hit else RED)]
    lines = [Line(f"score {record['score']:.2f}")]
    if not hit:
        marks.append(Mark(reference.boxes[reference.target], "referent", GREEN))
        lines.append(Line("red: chosen, green: referent"))
    return Tile(image, reference.text, lines, hit, marks)


if __name__ == "__main__":
    main()

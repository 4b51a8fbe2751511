"""The demo: make a small world, train a small VL-BERT to answer questions about it, and show how well it does.

python scripts/demo_vqa.py            from the repository root, a few minutes on a CPU
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.train.run import predict, run_test
from data.scenes.records import SPLITS, image_name
from scripts.demos import shared as demo
from scripts.demos.contact_sheet import Tile, contact_sheet
from scripts.demos.questions import (
    CFG,
    WORLD_FILES,
    Answers,
    Rows,
    guess,
    read_rows,
    table,
)
from vqa.accuracy import evaluate_answers


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

    images = len({row["image_id"] for row in rows})
    print(f"\nAccuracy in percent on {len(rows)} questions about {images} held-out images")
    print("majority: the most frequent answer; blind: the most frequent one to the same words, without the image\n")
    print(table(scores))
    print(f"\nmodel     {loaded.source}\nresults   {result.path} ({SPLITS['test'].name})\npictures  {sheet}")
    print(f"wall time {run.seconds:.0f} s")


def draw_answers(rows: Rows, answers: Answers, world: Path, path: Path) -> None:
    """A sheet of held-out images with question, answer and truth."""
    split, tiles = SPLITS["val"], []
    for row in rows:
        answer, truth = answers[row["question_id"]], row["multiple_choice_answer"]
        lines = [f"VL-BERT: {answer}"] if answer == truth else [f"VL-BERT: {answer}", f"truth: {truth}"]
        image = world / split.name / f"{image_name(split, row['image_id'])}.jpg"
        tiles.append((row["question_type"], Tile(image, row["question"], lines, correct=answer == truth)))
    contact_sheet(demo.pick_tiles(tiles)).save(path)


if __name__ == "__main__":
    main()

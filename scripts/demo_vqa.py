"""The demo of VQA: train a small VL-BERT to answer questions about images of a made-up world, and print its accuracy.

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
    Questions,
    accuracy_table,
    guess,
    read_questions,
)
from vqa.accuracy import evaluate_answers


def main(argv: Sequence[str] | None = None) -> None:
    run = demo.start(argv, __doc__.split("\n")[0], "vqa", [CFG], WORLD_FILES)
    (net,) = run.nets
    loaded = demo.train(net)
    records, _ = predict(net.task, net.cfg, loaded, "val")
    result = run_test(net.task, net.cfg, net.path)

    training, questions = read_questions(run.world, "train"), read_questions(run.world, "val")
    answers = {
        "majority": guess(training, questions, blind=False),
        "blind": guess(training, questions, blind=True),
        "VL-BERT": {record["id"]: record["answer"] for record in records},
    }
    scores = {name: evaluate_answers(given, questions) for name, given in answers.items()}
    sheet = net.folder / "answers.png"
    draw_answers(questions, answers["VL-BERT"], run.world, sheet)
    demo.write_scores(net, scores)

    images = len({question["image_id"] for question in questions})
    print(f"\nAccuracy in percent on {len(questions)} questions about {images} held-out images")
    print("majority: the most frequent answer; blind: the most frequent one to the same words, without the image\n")
    print(accuracy_table(scores))
    print(f"\nmodel     {loaded.source}\nresults   {result.path} ({SPLITS['test'].name})\nimages    {sheet}")
    print(f"wall time {run.seconds:.0f} s")


def draw_answers(questions: Questions, answers: Answers, world: Path, path: Path) -> None:
    """Save a sheet of held-out images with question, answer and truth."""
    split, tiles = SPLITS["val"], []
    for question in questions:
        answer, truth = answers[question["question_id"]], question["multiple_choice_answer"]
        lines = [f"VL-BERT: {answer}"] if answer == truth else [f"VL-BERT: {answer}", f"truth: {truth}"]
        image = world / split.name / f"{image_name(split, question['image_id'])}.jpg"
        tiles.append((question["question_type"], Tile(image, question["question"], lines, correct=answer == truth)))
    contact_sheet(demo.pick_tiles(tiles)).save(path)


if __name__ == "__main__":
    main()

"""The demo of VQA: train a small VL-BERT to answer questions about images of a made-up world, and print its accuracy.

python scripts/demo_vqa.py            from the repository root, a few minutes on a CPU
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.train.run import predict, run_test
from data.scenes.records import SPLITS, image_name
from scripts.demos import shared as demo
from scripts.demos.questions import (
    CFG,
    WORLD_FILES,
    compare,
    draw_answers,
    print_comparison,
    read_questions,
)


def main(argv: Sequence[str] | None = None) -> None:
    run = demo.start(argv, __doc__.split("\n")[0], "vqa", [CFG], WORLD_FILES)
    (net,) = run.nets
    loaded = demo.train(net)
    records, _ = predict(net.task, net.cfg, loaded, "val")
    result = run_test(net.task, net.cfg, net.path)

    def image(question: dict[str, Any]) -> Path:
        split = SPLITS["val"]
        return run.world / split.name / f"{image_name(split, question['image_id'])}.jpg"

    training, questions = read_questions(run.world, "train"), read_questions(run.world, "val")
    answers = {record["id"]: record["answer"] for record in records}
    scores = compare(training, questions, answers)
    sheet = net.folder / "answers.png"
    draw_answers(questions, answers, image, sheet)
    demo.write_scores(net, scores)

    print_comparison(scores, questions)
    print(f"\nmodel     {loaded.source}\nresults   {result.path} ({SPLITS['test'].name})\nimages    {sheet}")
    print(f"wall time {run.seconds:.0f} s")


if __name__ == "__main__":
    main()

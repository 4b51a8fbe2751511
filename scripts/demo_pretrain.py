"""The demo of pretraining: train on captions and text of a made-up world, then on a few questions; compare with none.

python scripts/demo_pretrain.py       from the repository root, some minutes on a CPU

The same small VL-BERT is trained twice on the same few batches of questions: from random weights, and from the weights
of pretraining on captions and text, which contain no question.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.train.run import predict
from common.weights import checkpoint
from scripts.demos import shared as demo
from scripts.demos.questions import (
    CFG,
    WORLD_FILES,
    accuracy_table,
    guess,
    read_questions,
)
from vqa.accuracy import evaluate_answers

PRETRAIN_CFG = Path("cfgs/pretrain/scenes.yaml")
PRETRAIN_FILES = {
    "DATASET.0.DATASET_PATH": "captions",
    "DATASET.1.TRAIN_ANNOTATION_FILE": "corpus/train.txt",
    "DATASET.1.VAL_ANNOTATION_FILE": "corpus/val.txt",
    "DATASET.1.TEST_ANNOTATION_FILE": "corpus/val.txt",
    "NETWORK.BERT_MODEL_NAME": "bert",
}
FAST_PRETRAIN = {"TRAIN.BATCH_IMAGES": [8, 4]}
QUESTIONS = {"TRAIN.END_EPOCH": 3, "TRAIN.WARMUP_STEPS": 30, "VAL_FREQUENT": 1}  # of the demo's eight


def main(argv: Sequence[str] | None = None) -> None:
    run = demo.start(argv, __doc__.split("\n")[0], "vqa", [CFG], WORLD_FILES)
    out = Path(run.nets[0].cfg.OUTPUT_PATH)
    changes: dict[str, Any] = demo.files_of(run.world, PRETRAIN_FILES) | {"OUTPUT_PATH": str(out / "pretraining")}
    if run.fast:
        changes |= demo.FAST_KEYS | FAST_PRETRAIN
    pretraining = demo.read_net("pretrain", PRETRAIN_CFG, changes)
    demo.train(pretraining)
    seconds = {"pretraining": run.seconds}
    best = checkpoint.best_path(pretraining.folder, pretraining.cfg.MODEL_PREFIX)

    training, questions = read_questions(run.world, "train"), read_questions(run.world, "val")
    scores = {"blind": evaluate_answers(guess(training, questions, blind=True), questions)}
    scratch = run.nets[0].with_keys(QUESTIONS | {"OUTPUT_PATH": str(out / "from-scratch")})
    tuned = scratch.with_keys({"OUTPUT_PATH": str(out / "from-pretraining"), "NETWORK.PARTIAL_PRETRAIN": str(best)})
    for name, net in (("scratch", scratch), ("pretrained", tuned)):
        start = time.perf_counter()
        records, _ = predict(net.task, net.cfg, demo.train(net), "val")
        scores[name] = evaluate_answers({record["id"]: record["answer"] for record in records}, questions)
        seconds[name] = time.perf_counter() - start

    demo.write_scores(tuned, scores)
    print(f"\nPretraining, held-out captions and text: {last_validation(pretraining)}")
    images = len({question["image_id"] for question in questions})
    print(f"\nAccuracy in percent on {len(questions)} questions about {images} held-out images, after {steps(scratch)}")
    print("updates on questions. blind: the most frequent answer to the same words, without the image\n")
    print(accuracy_table(scores))
    print(f"\npretrained  {best}\nmodel       {checkpoint.best_path(tuned.folder, tuned.cfg.MODEL_PREFIX)}")
    print("wall time  ", ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))


def last_validation(net: demo.Net) -> str:
    """Metrics of the last validation of a run, "MLMAccWVC 0.9, ..."."""
    lines = map(json.loads, (net.folder / "metrics.jsonl").read_text().splitlines())
    values = [line for line in lines if line["kind"] == "val"][-1]
    found = {k.removeprefix("Val-"): v for k, v in values.items() if k.startswith("Val-") and v is not None}
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items())


def steps(net: demo.Net) -> int:
    """Number of updates of a run."""
    state = checkpoint.load_file(checkpoint.best_path(net.folder, net.cfg.MODEL_PREFIX))
    return int(state["run"]["position"]["updates"])


if __name__ == "__main__":
    main()

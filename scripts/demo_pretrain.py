"""The demo of pretraining: captions and text of a made-up world first, then a few questions, against a fresh start.

python scripts/demo_pretrain.py       from the repository root, some minutes on a CPU

The same small VL-BERT is trained on the same few batches of questions twice: from random weights, and from the
weights that pretraining on captions and text left, which never saw a question.
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
    guess,
    read_rows,
    table,
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
QUESTIONS = {"TRAIN.END_EPOCH": 3, "TRAIN.WARMUP_STEPS": 30, "VAL_FREQUENT": 1}  # of the demo's ten


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

    training, rows = read_rows(run.world, "train"), read_rows(run.world, "val")
    scores = {"blind": evaluate_answers(guess(training, rows, blind=True), rows)}
    scratch = run.nets[0].with_keys(QUESTIONS | {"OUTPUT_PATH": str(out / "from-scratch")})
    tuned = scratch.with_keys({"OUTPUT_PATH": str(out / "from-pretraining"), "NETWORK.PARTIAL_PRETRAIN": str(best)})
    for name, net in (("scratch", scratch), ("pretrained", tuned)):
        start = time.perf_counter()
        records, _ = predict(net.task, net.cfg, demo.train(net), "val")
        scores[name] = evaluate_answers({record["id"]: record["answer"] for record in records}, rows)
        seconds[name] = time.perf_counter() - start

    demo.write_scores(tuned, scores)
    print(f"\nPretraining, held-out captions and text: {last_validation(pretraining)}")
    images = len({row["image_id"] for row in rows})
    print(f"\nAccuracy in percent on {len(rows)} questions about {images} held-out images, after {steps(scratch)}")
    print("updates on questions. blind: the most frequent answer to the same words, without the image\n")
    print(table(scores))
    print(f"\npretrained  {best}\nmodel       {checkpoint.best_path(tuned.folder, tuned.cfg.MODEL_PREFIX)}")
    print("wall time  ", ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))


def last_validation(net: demo.Net) -> str:
    """ "MLMAccWVC 0.9, ..." of the last line of its metrics."""
    lines = map(json.loads, (net.folder / "metrics.jsonl").read_text().splitlines())
    values = [line for line in lines if line["kind"] == "val"][-1]
    found = {k.removeprefix("Val-"): v for k, v in values.items() if k.startswith("Val-") and v is not None}
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items())


def steps(net: demo.Net) -> int:
    """Updates of its run."""
    state = checkpoint.load_file(checkpoint.best_path(net.folder, net.cfg.MODEL_PREFIX))
    return int(state["run"]["position"]["updates"])


if __name__ == "__main__":
    main()

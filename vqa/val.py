"""Score answers with the official VQA v2 accuracy, by answer type and question type.

python vqa/val.py --cfg cfgs/vqa/base_4x16G_fp32.yaml --ckpt FILE        run the model on DATASET.VAL_IMAGE_SET
python vqa/val.py --cfg cfgs/vqa/base_4x16G_fp32.yaml --result FILE      score a result file of vqa/test.py
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from common.cli import add_config_arguments, guarded_on, load_run_config
from common.config import Config


def main() -> None:
    parser = argparse.ArgumentParser(description="Official VQA v2 accuracy of a checkpoint or of a result file.")
    add_config_arguments(parser)
    parser.add_argument(
        "--ckpt", metavar="FILE", help="checkpoint (default: the best one of the config's training run)"
    )
    parser.add_argument("--result", metavar="FILE", help="score this result file instead of running a model")
    parser.add_argument("--split", help="overrides DATASET.VAL_IMAGE_SET")
    parser.add_argument("--bs", type=int, metavar="N", help="overrides VAL.BATCH_IMAGES")
    parser.add_argument("--gpus", type=int, nargs="+", metavar="GPU", help="overrides GPUS")
    parser.add_argument("--out", metavar="FILE", help="also write the scores as JSON")
    args = parser.parse_args()
    args.set += [f"DATASET.VAL_IMAGE_SET={args.split}"] if args.split else []
    args.set += [f"VAL.BATCH_IMAGES={args.bs}"] if args.bs is not None else []
    args.split = args.bs = None  # flags of test.py with another meaning
    sys.exit(guarded_on(None if args.result else args.gpus, _run, args))


def _run(args: argparse.Namespace) -> None:
    from common import distributed
    from common.errors import DataError
    from common.files.atomic import write_text
    from vqa.accuracy import evaluate_answers
    from vqa.annotations import parse_image_sets, read_list

    cfg = load_run_config("vqa", args)
    root = Path(cfg.DATASET.DATASET_PATH)
    sets = parse_image_sets(cfg.DATASET.VAL_IMAGE_SET)
    annotations = [a for s in sets for a in read_list(root / s.annotations_file, "annotations")]
    answers = _read_result(Path(args.result)) if args.result else _predict(cfg, args)
    if not distributed.is_main():
        return
    try:
        scores = evaluate_answers(answers, annotations)
    except (KeyError, TypeError) as error:
        raise DataError(f"the annotations of {cfg.DATASET.VAL_IMAGE_SET}: an entry lacks {error}") from error
    print(format_scores(scores))
    if args.out:
        write_text(Path(args.out), json.dumps(scores, indent=2) + "\n")


def _predict(cfg: Config, args: argparse.Namespace) -> list[dict[str, Any]]:
    from common.task import load_task
    from common.train.run import predict
    from common.weights.restore import load_trained

    task = load_task("vqa")
    loaded = load_trained(task, cfg, Path(args.cfg), Path(args.ckpt) if args.ckpt else None)
    records, _ = predict(task, cfg, loaded, "val")
    return [{"question_id": r["id"], "answer": r["answer"]} for r in records]


def _read_result(path: Path) -> list[dict[str, Any]]:
    """A result file. Raises DataError naming the entry that is not {question_id, answer}."""
    from common.errors import DataError

    if not path.is_file():
        raise FileNotFoundError(f"result file {path}: no such file")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON at line {error.lineno}: {error.msg}") from error
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a list of results, found {type(records).__name__}")
    for i, record in enumerate(records):
        if not isinstance(record, dict) or not isinstance(record.get("answer"), str) or "question_id" not in record:
            raise DataError(f"{path}: entry {i} is {str(record)[:80]}, expected question_id and answer")
    return records


def format_scores(scores: dict[str, Any]) -> str:
    """Accuracy in percent and number of questions, by answer type, by question type, and overall."""
    rows = [("answer type", "questions", "accuracy %")]
    rows += (
        _rows(scores["answer_type"]) + [("question type", "questions", "accuracy %")] + _rows(scores["question_type"])
    )
    rows += _rows({"overall": scores["overall"]})
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:<{width}}  {count:>9}  {accuracy:>10}" for name, count, accuracy in rows)


def _rows(part: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(name, str(s["count"]), f"{s['accuracy']:.2f}") for name, s in sorted(part.items())]


if __name__ == "__main__":
    main()

"""Score answers with the official VQA v2 accuracy, by answer type and question type.

python vqa/val.py --cfg cfgs/vqa/base_4x16G_fp32.yaml --ckpt FILE        run the model on DATASET.VAL_IMAGE_SET
python vqa/val.py --cfg cfgs/vqa/base_4x16G_fp32.yaml --result FILE      score a result file of vqa/test.py
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.cli import add_config_arguments, gpu_key, guarded_on, load_run_config, overrides
from common.config import Config


@dataclass(frozen=True)
class Flags:
    """The command line. result: a file to score, None to run the model of `ckpt`. out: a JSON file to write."""

    cfg: Path
    overrides: tuple[str, ...]
    model_dir: str | None
    ckpt: Path | None
    result: Path | None
    out: Path | None


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
    gpus = None if args.result else args.gpus
    keys = {"DATASET.VAL_IMAGE_SET": args.split or None, "VAL.BATCH_IMAGES": args.bs, "GPUS": gpu_key(args.gpus)}
    flags = Flags(
        cfg=Path(args.cfg),
        overrides=overrides(args.set, keys),
        model_dir=args.model_dir,
        ckpt=Path(args.ckpt) if args.ckpt else None,
        result=Path(args.result) if args.result else None,
        out=Path(args.out) if args.out else None,
    )
    sys.exit(guarded_on(gpus, _run, flags))


def _run(flags: Flags) -> None:
    from common import distributed
    from common.errors import DataError
    from common.files.atomic import write_text
    from vqa.accuracy import evaluate_answers
    from vqa.annotations import parse_image_sets, read_list

    cfg = load_run_config("vqa", flags.cfg, flags.overrides, flags.model_dir)
    root = Path(cfg.DATASET.DATASET_PATH)
    sets = parse_image_sets(cfg.DATASET.VAL_IMAGE_SET)
    annotations = [a for s in sets for a in read_list(root / s.annotations_file, "annotations")]
    answers = _predict(cfg, flags) if flags.result is None else _read_result(flags.result)
    if not distributed.is_main():
        return
    try:
        scores = evaluate_answers(answers, annotations)
    except (KeyError, TypeError) as error:
        raise DataError(f"the annotations of {cfg.DATASET.VAL_IMAGE_SET}: an entry lacks {error}") from error
    print(format_scores(scores))
    if flags.out is not None:
        write_text(flags.out, json.dumps(scores, indent=2) + "\n")


def _predict(cfg: Config, flags: Flags) -> list[dict[str, Any]]:
    """Results of the model on DATASET.VAL_IMAGE_SET, in the format of a result file."""
    from common.task import load_task
    from common.train.run import predict
    from common.weights.restore import load_trained

    task = load_task("vqa")
    records, _ = predict(task, cfg, load_trained(task, cfg, flags.cfg, flags.ckpt), "val")
    return [{"question_id": r["id"], "answer": r["answer"]} for r in records]


def _read_result(path: Path) -> list[dict[str, Any]]:
    """The entries of a result file. Raises DataError naming an entry without question_id or answer."""
    from common.errors import DataError
    from common.files.json_files import read_json

    records = read_json(path, "result file")
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a list of results, found {type(records).__name__}")
    for i, record in enumerate(records):
        if not isinstance(record, dict) or not isinstance(record.get("answer"), str) or "question_id" not in record:
            raise DataError(f"{path}: entry {i} is {str(record)[:80]}, expected question_id and answer")
    return records


def format_scores(scores: dict[str, Any]) -> str:
    """Accuracy in percent and number of questions, by answer type, by question type, and overall."""
    rows = [("answer type", "questions", "accuracy %"), *_rows(scores["answer_type"])]
    rows += [("question type", "questions", "accuracy %"), *_rows(scores["question_type"])]
    rows += _rows({"overall": scores["overall"]})
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"{name:<{width}}  {count:>9}  {accuracy:>10}" for name, count, accuracy in rows)


def _rows(part: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, number of questions and accuracy of each entry, by name."""
    return [(name, str(s["count"]), f"{s['accuracy']:.2f}") for name, s in sorted(part.items())]


if __name__ == "__main__":
    main()

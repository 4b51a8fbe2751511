"""A data set that a task trains on, from the user's own images and records.

    python -m data.own vqa --input train.jsonl --images photos --boxes vg:detector.safetensors --out data/mine
    python vqa/train_end2end.py --cfg data/mine/vqa.yaml

A record is a JSON object a line:

    vqa       {"image": "a/x.png", "question": "what colour is it?", "answers": ["red"]}
    refcoco   {"image": "a/x.png", "expression": "the dog on the left", "box": [10, 20, 90, 80]}
    vcr       {"image": "a/x.png", "objects": ["person"], "boxes": [[10, 20, 90, 80]], "question": "What is [1] ?",
               "answers": [four texts], "label": 0, "rationales": [four texts], "rationale_label": 2}
    pretrain  {"image": "a/x.png", "caption": "A dog, running."}

All records may have `id` and `boxes` ([[x1, y1, x2, y2], ...] in pixels). Answers of VQA are a text, a list of the
annotators' answers, or an object of scores, {"red": 0.6}. A CSV with the columns image and text (and label, the answer)
works too. docs/own_dataset.md explains all keys.

Writes the regions, copies of the images, the files that the task reads, ids.jsonl (the id, file and line of each
record) and the YAML, all of them or nothing. Every problem of the input is in one report. The same command continues a
run that was stopped while regions were computed.

Exit status: 0; 1 if records were left out (--skip-bad); 2 for an error in the input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.regions.arguments import SOURCES, add_detector_arguments, detector_limits

TASKS = ("vqa", "refcoco", "vcr", "pretrain")
PRESETS = ("tiny", "base", "large")
ENCODERS = ("vg:", "resnet:", "module:")


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if not 0 < args.split < 1:
        parser.error(f"--split {args.split}: expected a share between 0 and 1")
    if args.answers < 1:
        parser.error(f"--answers {args.answers}: expected 1 at least")
    if args.encoder and not args.encoder.startswith(ENCODERS):
        parser.error(f"--encoder {args.encoder}: expected vg:FILE, resnet:FILE or module:NAME")
    if args.boxes and args.boxes.startswith("vcr:"):
        parser.error(f"--boxes {args.boxes}: vcr: is for the images of VCR")
    if args.boxes and args.task == "vcr":
        parser.error(
            "--boxes: the records of VCR have boxes, because their texts refer to them; --encoder may be given"
        )
    from data.own.convert import convert  # torch is slow to import: a wrong option is reported before
    from data.own.task import Settings

    files = {"train": args.input, "val": args.val, "test": args.test}
    settings = Settings(
        files={part: file for part, file in files.items() if file is not None},
        images=args.images or args.input.parent,
        out=args.out,
        split=args.split,
        boxes=args.boxes,
        encoder=args.encoder,
        limits=detector_limits(args),
        answers=args.answers,
        preset=args.preset,
        language=args.language,
        vocabulary=args.vocab,
        cnn=args.cnn,
        seed=args.seed,
        device=args.device,
        link=args.link,
        skip_bad=args.skip_bad,
        overwrite=args.overwrite,
    )
    try:
        return 1 if convert(args.task, settings) else 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data.own", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--input", type=Path, required=True, help="records of training, JSON lines or CSV")
    parser.add_argument("--val", type=Path, help="records of validation")
    parser.add_argument("--test", type=Path, help="records for test.py; those of vqa and vcr need no answers")
    parser.add_argument(
        "--split", type=float, default=0.9, help="without --val: share of the images for training (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split (default %(default)s)")
    parser.add_argument(
        "--images", type=Path, help="folder that the paths of images start from (default: that of --input)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--boxes", metavar="SOURCE", help=f"for images whose records have none (default grid:4x4): {SOURCES}"
    )
    parser.add_argument(
        "--encoder", help="computes region features: vg:FILE, resnet:FILE or module:NAME (--boxes vg: has its own)"
    )
    add_detector_arguments(parser)
    parser.add_argument("--device", help="of a detector and an encoder (default: cuda if there is a GPU)")
    parser.add_argument("--answers", type=int, default=3129, help="vqa: keep the N most frequent (default %(default)s)")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="size of the model (default %(default)s)")
    parser.add_argument(
        "--language", type=Path, metavar="FOLDER", help="BERT folder: weights, vocab.txt, and sizes by its config.json"
    )
    parser.add_argument("--vocab", type=Path, help="vocab.txt of random language weights (default: from the records)")
    parser.add_argument("--cnn", help="ResNet weights <prefix>-<4 digits>.model for a model from pixels")
    parser.add_argument("--link", action="store_true", help="hard links in place of copies of the images")
    parser.add_argument("--skip-bad", action="store_true", help="leave out records of images that cannot be used")
    parser.add_argument("--overwrite", action="store_true", help="replace --out")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""A data set that a task trains on, from the user's own images and records.

    python -m data.own vqa --input train.jsonl --images photos --boxes vg:detector.safetensors --out data/mine
    python vqa/train_end2end.py --cfg data/mine/vqa.yaml

A record of VQA is a JSON object a line: {"image": "a/x.png", "question": "what colour is it?", "answers": ["red"]}.
`answers` may be a text, a list of the annotators' answers, or an object of scores, {"red": 0.6}. Optional keys are `id`
and `boxes` ([[x1, y1, x2, y2], ...] in pixels). A CSV with the columns image, text and label works too.
The paths of images are relative to --images.

Writes the answer list, the regions, copies of the images, the files of VQA v2, ids.jsonl (question_id and the id, file
and line of the record) and vqa.yaml, all of them or nothing. Every problem of the input is in one report.

Exit status: 0; 2 for an error in the input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.regions.arguments import SOURCES, add_detector_arguments, detector_limits

PRESETS = ("tiny", "base", "large")


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if not 0 < args.split < 1:
        parser.error(f"--split {args.split}: expected a share between 0 and 1")
    if args.answers < 1:
        parser.error(f"--answers {args.answers}: expected 1 at least")
    if args.encoder and not args.encoder.startswith(("resnet:", "module:")):
        parser.error(f"--encoder {args.encoder}: expected resnet:FILE or module:NAME")
    from data.own.vqa import Settings, convert  # torch is slow to import: a wrong option is reported before

    files = {"train": args.input, "val": args.val, "test": args.test}
    settings = Settings(
        files={part: file for part, file in files.items() if file is not None},
        images=args.images,
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
        link=args.link,
        overwrite=args.overwrite,
    )
    try:
        convert(settings)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data.own", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=("vqa",))
    parser.add_argument("--input", type=Path, required=True, help="records of training, JSON lines or CSV")
    parser.add_argument("--val", type=Path, help="records of validation")
    parser.add_argument("--test", type=Path, help="records for vqa/test.py, answers are not needed")
    parser.add_argument(
        "--split", type=float, default=0.9, help="without --val: share of the images for training (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--images", type=Path, required=True, help="folder that the paths of images start from")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--boxes", metavar="SOURCE", help=f"for images whose records have none (default grid:4x4): {SOURCES}"
    )
    parser.add_argument("--encoder", help="computes region features: resnet:FILE or module:NAME (vg: has its own)")
    add_detector_arguments(parser)
    parser.add_argument("--answers", type=int, default=3129, help="keep the N most frequent (default %(default)s)")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="size of the model (default %(default)s)")
    parser.add_argument(
        "--language", type=Path, metavar="FOLDER", help="BERT folder: weights, vocab.txt, and sizes by its config.json"
    )
    parser.add_argument("--vocab", type=Path, help="vocab.txt of random language weights (default: from the records)")
    parser.add_argument("--cnn", help="ResNet weights <prefix>-<4 digits>.model for a model from pixels")
    parser.add_argument("--link", action="store_true", help="hard links in place of copies of the images")
    parser.add_argument("--overwrite", action="store_true", help="replace --out")
    return parser


if __name__ == "__main__":
    sys.exit(main())

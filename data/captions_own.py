"""Files for pretraining from the user's own images and captions.

    python -m data.captions_own --captions mine.jsonl --out data/mine --split train --boxes coco:instances.json

Input: a JSON object a line, {"image": "images/a.jpg", "caption": "A dog, running."}. The path is relative to the file.
The caption is a text or a list of words. An image with several captions has several lines.

Output, a folder for DATASET_PATH: `<split>_image/<8 digits>.jpg` (a copy of each image, named by its first line,
counted from 0), `<split>.json`, `<split>_frcnn.json`, and with --boxes the region files `<split>_boxes/<8 digits>.json`
with boxes and class scores. data.extract_features then makes `<split>_frcnn` with features; the command is printed at
the end. Training from pixels needs no features: --complete writes the region files to `<split>_frcnn`. So it
does for --boxes vg:DETECTOR, whose region files have features. The same command continues a stopped run.

Exit status: 0; 1 if images were left out (--skip-bad); 2 for an error in the input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.regions.arguments import add_detector_arguments, detector_limits
from data.captions.files import SPLITS


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    from data.captions.own import Settings, convert  # torch is slow to import: a wrong option is reported before

    settings = Settings(
        captions=args.captions,
        out=args.out,
        split=args.split,
        boxes=args.boxes,
        limits=detector_limits(args),
        device=args.device,
        complete=args.complete,
        link=args.link,
        skip_bad=args.skip_bad,
        overwrite=args.overwrite,
    )
    try:
        return convert(settings)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data.captions_own", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=Path, required=True, help="JSON lines of image and caption")
    parser.add_argument("--out", type=Path, required=True, help="folder to make, DATASET_PATH of a config")
    parser.add_argument("--split", required=True, choices=SPLITS, help="part of the data set")
    parser.add_argument(
        "--boxes", help="coco:INSTANCES.json  json:FILE.json  regions:STORE  detector:WEIGHTS.pth  grid:ROWSxCOLUMNS"
    )
    add_detector_arguments(parser)
    parser.add_argument("--device", help="of a detector (default: cuda if there is a GPU)")
    parser.add_argument("--complete", action="store_true", help="region files need no further features: <split>_frcnn")
    parser.add_argument("--link", action="store_true", help="hard links in place of copies of the images")
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be used")
    parser.add_argument("--overwrite", action="store_true", help="even if there were more records before")
    return parser


if __name__ == "__main__":
    sys.exit(main())

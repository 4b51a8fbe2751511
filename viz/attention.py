"""Attention of a model on one image and text, as one HTML file that works offline.

python -m viz.attention --ckpt FILE --image a.jpg --text "what color is the square?" -o report.html
python -m viz.attention --map maps/attention_probs/139.npy -o report.html          of pretrain/vis_attention_maps.py
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.cli import guarded
from common.predict.cli import add_predictor_arguments, open_predictor


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m viz.attention", description=__doc__.split("\n")[0])
    add_predictor_arguments(parser, required=False)
    parser.add_argument("--map", type=Path, metavar="FILE", help="attention that was written before, instead of --ckpt")
    parser.add_argument("--task", help="task of a checkpoint that does not say it")
    parser.add_argument("--image", metavar="FILE", help="of a --map: where its image is now")
    parser.add_argument("--text", help="question, expression or caption")
    parser.add_argument("--boxes-json", type=json.loads, metavar="LIST", help="[[x1, y1, x2, y2], ...] in pixels")
    parser.add_argument(
        "--field", nargs="+", action="extend", default=[], metavar="NAME=JSON", help="more of what the task asks for"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE")
    args = parser.parse_args(argv)
    if args.map is None and not (args.ckpt and args.image and args.text is not None):
        parser.error("expected --ckpt, --image and --text, or --map")
    return guarded(_main, args)


def _main(args: argparse.Namespace) -> None:
    from common.files.atomic import write_text
    from viz.report import render_report

    capture = read_map(args.map, args.image) if args.map else ask(args)
    write_text(args.output, render_report([capture]))
    for note in capture["notes"]:
        print(f"note: {note}")
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


def ask(args: argparse.Namespace) -> dict[str, Any]:
    """The capture of a model's answer to the command line."""
    from common.errors import ConfigError
    from viz.capture import make_capture

    predictor = open_predictor(args.task, args)
    asked = {}
    for text in args.field:
        name, _, value = text.partition("=")
        try:
            asked[name] = json.loads(value)
        except ValueError as error:
            raise ConfigError(f"--field {text!r}: expected NAME=JSON: {error}") from error
    asked[predictor.text_field] = args.text
    prediction = predictor(args.image, boxes=args.boxes_json, attention=True, **asked)
    image = predictor.images.open(args.image)
    title = f"{image.name}: {args.text}"
    return make_capture(prediction, image.pixels, title, predictor.task, predictor.source.name, args.text)


def read_map(path: Path, image_path: str | None) -> dict[str, Any]:
    """The capture of a file of maps, and of what the file beside it holds about its slots.

    image_path: where the image is now, if it was moved.

    Raises DataError for files that do not belong together.
    """
    import numpy as np
    import torch

    from common.errors import DataError
    from common.files.images import load_image
    from common.predict.predictor import Prediction, Slot
    from viz.capture import make_capture

    beside = path.parent.parent / "slots" / f"{path.stem}.json"
    if not path.is_file() or not beside.is_file():
        raise FileNotFoundError(f"{path} or {beside}: no such file; pretrain/vis_attention_maps.py writes both")
    try:
        about, attention = json.loads(beside.read_text(encoding="utf-8")), np.load(path)
        slots = [Slot(**slot) for slot in about["slots"]]
        size = (about["image"]["width"], about["image"]["height"])
        prediction = Prediction(
            [], about["boxes"], about["names"], size, slots, attention=torch.from_numpy(attention).float()
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{beside}: not what vis_attention_maps.py writes: {error!r}") from error
    if attention.shape[2:] != (len(slots), len(slots)):
        raise DataError(f"{path}: {list(attention.shape)}, but {beside} has {len(slots)} slots")
    image = load_image(image_path or about["image"]["path"])
    return make_capture(prediction, image, f"{path.stem}: {about['text']}", "pretrain", path.name, about["text"])


if __name__ == "__main__":
    sys.exit(main())

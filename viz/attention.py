"""Attention of a model on one picture and text, as one HTML file that works offline.

python -m viz.attention --ckpt FILE --image a.jpg --text "what color is the square?" -o report.html
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from common.cli import guarded
from common.predict_cli import add_predictor_arguments, open_predictor


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m viz.attention", description=__doc__.split("\n")[0])
    add_predictor_arguments(parser)
    parser.add_argument("--task", help="task of a checkpoint that does not say it")
    parser.add_argument("--image", required=True, metavar="FILE")
    parser.add_argument("--text", required=True, help="question, expression or caption")
    parser.add_argument("--boxes-json", type=json.loads, metavar="LIST", help="[[x1, y1, x2, y2], ...] in pixels")
    parser.add_argument(
        "--field", nargs="+", action="extend", default=[], metavar="NAME=JSON", help="more of what the task asks for"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE")
    return guarded(_main, parser.parse_args(argv))


def _main(args: argparse.Namespace) -> None:
    from common.config import ConfigError
    from common.files import write_text
    from viz.capture import make_capture
    from viz.report import render_report

    predictor = open_predictor(args.task, args)
    asked = {}
    for text in args.field:
        name, _, value = text.partition("=")
        try:
            asked[name] = json.loads(value)
        except ValueError as error:
            raise ConfigError(f"--field {text!r}: expected NAME=JSON: {error}") from error
    prediction = predictor(
        args.image, boxes=args.boxes_json, attention=True, **{predictor.text_field: args.text}, **asked
    )
    picture = predictor.pictures.open(args.image)
    capture = make_capture(
        prediction, picture.image, f"{picture.name}: {args.text}", predictor.task, predictor.source.name, args.text
    )
    write_text(args.output, render_report([capture]))
    for note in prediction.notes:
        print(f"note: {note}")
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())

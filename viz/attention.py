"""The attention of a model for one image and text, as one HTML file that works offline.

python -m viz.attention --ckpt FILE --image a.jpg --text "what color is the square?" -o report.html
python -m viz.attention --map maps/attention_probs/139.npy -o report.html     written by pretrain/vis_attention_maps.py
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.cli import guarded
from common.predict.cli import PredictorOptions, add_predictor_arguments


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m viz.attention", description=__doc__.split("\n")[0])
    add_predictor_arguments(parser, required=False)
    parser.add_argument("--map", type=Path, metavar="FILE", help="attention maps in a file, instead of --ckpt")
    parser.add_argument("--task", help="task of a checkpoint that does not name it")
    parser.add_argument("--image", metavar="FILE", help="the image; of a --map: its place if it was moved")
    parser.add_argument("--text", help="question, expression or caption")
    parser.add_argument("--boxes-json", type=json.loads, metavar="LIST", help="[[x1, y1, x2, y2], ...] in pixels")
    parser.add_argument(
        "--field", nargs="+", action="extend", default=[], metavar="NAME=JSON", help="further fields of the task"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE")
    args = parser.parse_args(argv)
    if args.map is None and not (args.ckpt and args.image and args.text is not None):
        parser.error("expected --ckpt, --image and --text, or --map")
    if args.map:
        return guarded(report_map, args.map, args.image, args.output)
    options = PredictorOptions.from_args(args, args.task)
    return guarded(report_prediction, options, args.image, args.text, args.boxes_json, args.field, args.output)


def report_map(path: Path, image_path: str | None, output: Path) -> None:
    """Write the page of a file of maps; arguments as in `read_map`."""
    _write_report(read_map(path, image_path), output)


def report_prediction(
    options: PredictorOptions, image_path: str, text: str, boxes: Any, fields: Sequence[str], output: Path
) -> None:
    """Write the page of a prediction. boxes: [[x1, y1, x2, y2], ...] or None. fields: "NAME=JSON" of further fields."""
    from viz.capture import make_capture

    predictor = options.load()
    asked = parse_fields(fields) | {predictor.text_field: text}
    prediction = predictor(image_path, boxes=boxes, attention=True, **asked)
    image = predictor.images.open(image_path)
    title = f"{Path(image_path).name}: {text}"
    capture = make_capture(prediction, image.pixels, title, predictor.task, predictor.source.name, text)
    _write_report(capture, output)


def parse_fields(texts: Sequence[str]) -> dict[str, Any]:
    """["NAME=JSON", ...] as a dict. Raises ConfigError."""
    from common.errors import ConfigError

    fields = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            fields[name] = json.loads(value)
        except ValueError as error:
            raise ConfigError(f"--field {text!r}: expected NAME=JSON: {error}") from error
    return fields


def _write_report(capture: dict[str, Any], output: Path) -> None:
    from common.files.atomic import write_text
    from viz.report import render_report

    write_text(output, render_report([capture]))
    for note in capture["notes"]:
        print(f"note: {note}")
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


def read_map(path: Path, image_path: str | None) -> dict[str, Any]:
    """The capture of a file of maps and of the file of slots beside it.

    image_path: place of the image, None for the place at the time of writing.
    Raises FileNotFoundError, and DataError for files that do not belong together.
    """
    import numpy as np
    import torch

    from common.errors import DataError
    from common.files.images import load_image
    from common.predict.prediction import Prediction, Slot
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
    image_path = image_path or about["image"]["path"]
    title = f"{Path(image_path).name}: {about['text']}"
    return make_capture(prediction, load_image(image_path), title, "pretrain", path.name, about["text"])


if __name__ == "__main__":
    sys.exit(main())

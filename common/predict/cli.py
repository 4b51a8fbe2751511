"""The command line of prediction, one for all tasks: `predict_main(task_name, FIELDS)` is a whole entry point.

Heavy imports happen after the arguments are parsed, so that `--help` and a wrong flag answer at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from common.cli import guarded
from common.predict.fields import Field
from common.regions.arguments import DEFAULT_LIMITS, SOURCES, DetectorLimits, add_detector_arguments, detector_limits

if TYPE_CHECKING:
    from common.predict.prediction import Prediction
    from common.predict.predictor import Predictor

CONVERTERS: dict[str, Any] = {"text": str, "texts": str, "number": int, "numbers": int, "json": json.loads}

SHOWN_LABELS = 10  # boxes whose labels the text output has

Item = dict[str, Any]  # one input: "image", the fields of the task, maybe "boxes" and "id"


@dataclass(frozen=True)
class PredictorOptions:
    """The arguments of `load_predictor`, as a command line gives them."""

    ckpt: str
    task: str | None
    cfg: str | None
    overrides: Sequence[str]
    device: str
    precision: str
    boxes: str | None
    encoder: str | None
    labels: str | None
    limits: DetectorLimits = DEFAULT_LIMITS

    @classmethod
    def from_args(cls, args: argparse.Namespace, task: str | None) -> PredictorOptions:
        """args: parsed by a parser with `add_predictor_arguments`. task: None for the task of the checkpoint."""
        return cls(
            args.ckpt,
            task,
            args.cfg,
            args.set,
            args.device,
            args.precision,
            args.boxes,
            args.encoder,
            args.labels,
            detector_limits(args),
        )

    def load(self) -> Predictor:
        from common.predict.load import load_predictor

        return load_predictor(**vars(self))


def add_predictor_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the arguments of PredictorOptions but `task`. required: whether --ckpt is."""
    parser.add_argument(
        "--ckpt", required=required, metavar="FILE|DIR", help="checkpoint or model folder; ours carry their config"
    )
    parser.add_argument("--cfg", metavar="FILE", help="YAML of a checkpoint that carries none")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys of the config"
    )
    parser.add_argument(
        "--boxes",
        metavar="SOURCE",
        help=f"where boxes come from: {SOURCES}",
    )
    add_detector_arguments(parser)
    parser.add_argument(
        "--encoder", metavar="SOURCE", help="what computes region features: vg:DETECTOR, resnet:FILE or module:NAME"
    )
    parser.add_argument("--labels", metavar="FILE", help="names of the region classes of pretraining, one a line")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="fp32")


def predict_main(task_name: str, fields: Sequence[Field], argv: Sequence[str] | None = None) -> None:
    """Entry point: predictions for one image of the command line, or for every line of a JSON-lines file.

    Exit status: 0, 1 if an input could not be read or answered, 2 for a wrong command line.
    """
    parser = build_parser(task_name, fields)
    args = parser.parse_args(argv)
    if (args.input is None) == (args.image is None):
        parser.error("give either --image or --input")
    if args.image is not None:
        asked = {f.name: value for f in fields if (value := getattr(args, f.name)) is not None}
        if missing := [f.name for f in fields if f.required and f.name not in asked]:
            parser.error(f"--image needs {', '.join('--' + name for name in missing)}")
        items: Iterator[Item | Exception] = iter([{"image": args.image, "boxes": args.boxes_json, **asked}])
    else:
        items = _read_lines(args.input)  # reads when the first item is taken
    as_json = (args.format or ("json" if args.input else "text")) == "json"
    options = PredictorOptions.from_args(args, task_name)
    sys.exit(guarded(write_predictions, options, items, args.output, as_json, args.batch, args.top_k))


def build_parser(task_name: str, fields: Sequence[Field]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=f"Ask a VL-BERT of {task_name} about images.")
    add_predictor_arguments(parser)
    parser.add_argument("--image", metavar="FILE", help="one image to ask about")
    for f in fields:
        several = "+" if f.kind in ("texts", "numbers") else None
        parser.add_argument(f"--{f.name}", help=f.help, type=CONVERTERS[f.kind], nargs=several)
    parser.add_argument(
        "--boxes-json", type=json.loads, metavar="LIST", help="boxes of --image: [[x1, y1, x2, y2], ...]"
    )
    parser.add_argument(
        "--input",
        metavar="FILE",
        help='many inputs: a JSON object a line with "image" and the fields above; - is stdin',
    )
    parser.add_argument("--output", metavar="FILE", help="where to write (default: stdout)")
    parser.add_argument("--format", choices=("text", "json"), help="default: text for --image, JSON lines for --input")
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="how many answers (default: 5)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="inputs at a time (default: 16)")
    return parser


def write_predictions(
    options: PredictorOptions,
    items: Iterable[Item | Exception],
    output: str | None,
    as_json: bool,
    batch_size: int,
    top_k: int,
) -> int:
    """Answer every item and write a line or a block for each. output: None for stdout. Returns the exit status."""
    from tqdm import tqdm

    predictor = options.load()
    items = list(items)
    predictions = predictor.many((i for i in items if isinstance(i, dict)), batch_size, top_k=top_k)
    status = 0
    with ExitStack() as stack:
        out: TextIO = stack.enter_context(open(output, "w", encoding="utf-8")) if output else sys.stdout
        for item in tqdm(items, unit="input", disable=len(items) < 2 or not sys.stderr.isatty()):
            answer = next(predictions) if isinstance(item, dict) else item
            status = 1 if isinstance(answer, Exception) else status
            known = item if isinstance(item, dict) else {}
            print(_json_line(known, answer) if as_json else _text(known, answer), file=out, flush=True)
    return status


def _read_lines(path: str) -> Iterator[Item | Exception]:
    """The items of a JSON-lines file, "-" for stdin; for a line that is no JSON object, its error."""
    from common.errors import DataError
    from common.files.json_files import parse_object

    lines = sys.stdin if path == "-" else Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield parse_object(line, f"{path}, line {number}")
        except DataError as error:
            yield error


def _json_line(item: Mapping[str, Any], answer: Prediction | Exception) -> str:
    about = {k: item[k] for k in ("id", "image") if k in item}
    if isinstance(answer, Exception):
        return json.dumps({**about, "error": str(answer)})
    return json.dumps({**about, **answer.to_dict()})


def _text(item: Mapping[str, Any], answer: Prediction | Exception) -> str:
    title = str(item.get("image", "?"))
    if isinstance(answer, Exception):
        return f"{title}\n  ERROR {answer}"
    lines = [title]
    for a in answer.answers:
        mask = f"[MASK] {a['mask'] + 1}: " if "mask" in a else ""
        box = f"  {[round(x, 1) for x in a['box']]}" if "box" in a else ""
        if "box" in a and answer.labels and (label := answer.labels[a["index"]]):
            box += f"  {label}"
        lines.append(f"  {100 * a['probability']:6.2f} %  {mask}{a['answer']}{box}")
    for region in answer.regions:
        best = ", ".join(f"{x['label']} {100 * x['probability']:.1f} %" for x in region["labels"])
        lines.append(f"  box {answer.names[region['box']]}: {best}")
    labels = [f"{name} {label}" for name, label in zip(answer.names, answer.labels, strict=False) if label]
    if labels and not any("box" in a for a in answer.answers):
        more = f", and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
        lines.append(f"  boxes: {', '.join(labels[:SHOWN_LABELS])}{more}")
    return "\n".join([*lines, *(f"  note: {note}" for note in answer.notes)])

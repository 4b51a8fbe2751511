"""The command line of prediction, the same for all tasks: `predict(task, FIELDS)` is a whole entry point."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from common.cli import guarded
from common.predict.fields import Field

if TYPE_CHECKING:
    from common.predict.predictor import Prediction, Predictor

CONVERTERS: dict[str, Any] = {"text": str, "texts": str, "number": int, "numbers": int, "json": json.loads}


def predict(task_name: str, fields: Sequence[Field], argv: Sequence[str] | None = None) -> None:
    """Entry point: answers for one image of the command line, or for every line of a JSON-lines file.

    Exit status: 0, 1 where something could not be answered or read.
    """
    parser = build_parser(task_name, fields)
    args = parser.parse_args(argv)
    if (args.input is None) == (args.image is None):
        parser.error("give either --image or --input")
    if args.image is not None and (missing := [f.name for f in fields if f.required and getattr(args, f.name) is None]):
        parser.error(f"--image needs {', '.join('--' + name for name in missing)}")
    args.fields, args.failed = fields, 0
    status = guarded(_predict, task_name, args)
    sys.exit(status or bool(args.failed))


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


def add_predictor_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The arguments of `load_predictor`."""
    parser.add_argument("--ckpt", required=required, metavar="FILE", help="checkpoint; one of ours carries its config")
    parser.add_argument("--cfg", metavar="FILE", help="YAML of a checkpoint that carries none")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys of the config"
    )
    parser.add_argument(
        "--boxes",
        metavar="SOURCE",
        help="where boxes come from: regions:STORE, json:FILE, detector:FILE, grid:4x4, ...",
    )
    parser.add_argument("--encoder", metavar="SOURCE", help="what computes region features: resnet:FILE or module:NAME")
    parser.add_argument("--labels", metavar="FILE", help="names of the region classes of pretraining, one a line")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="fp32")


def open_predictor(task_name: str | None, args: argparse.Namespace) -> Predictor:
    """The predictor that the arguments describe. task_name: None for that of the checkpoint."""
    from common.predict.predictor import load_predictor

    return load_predictor(
        args.ckpt,
        task_name,
        args.cfg,
        args.set,
        args.device,
        args.precision,
        args.boxes,
        args.encoder,
        args.labels,
    )


def _predict(task_name: str, args: argparse.Namespace) -> None:
    from tqdm import tqdm

    predictor = open_predictor(task_name, args)
    rows = list(_rows(args))
    as_json = (args.format or ("json" if args.input else "text")) == "json"
    items = [row for row in rows if not isinstance(row, Exception)]
    answers = predictor.many(items, args.batch, top_k=args.top_k)
    out: TextIO = open(args.output, "w", encoding="utf-8") if args.output else sys.stdout  # noqa: SIM115
    try:
        for row in tqdm(rows, unit="input", disable=len(rows) < 2 or not sys.stderr.isatty()):
            answer = row if isinstance(row, Exception) else next(answers)
            args.failed += isinstance(answer, Exception)
            row = {} if isinstance(row, Exception) else row
            print(_json_line(row, answer) if as_json else _text(row, answer), file=out, flush=True)
    finally:
        if args.output:
            out.close()


def _rows(args: argparse.Namespace) -> Iterator[dict[str, Any] | Exception]:
    """The inputs; an error in the place of a line that is none."""
    from common.errors import DataError
    from common.files.json_files import parse_object

    if args.image is not None:
        asked = {f.name: getattr(args, f.name) for f in args.fields}
        yield {"image": args.image, "boxes": args.boxes_json, **{k: v for k, v in asked.items() if v is not None}}
        return
    lines = sys.stdin if args.input == "-" else Path(args.input).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield parse_object(line, f"{args.input}, line {number}")
        except DataError as error:
            yield error


def _json_line(row: dict[str, Any], answer: Prediction | Exception) -> str:
    about = {k: row[k] for k in ("id", "image") if k in row}
    if isinstance(answer, Exception):
        return json.dumps({**about, "error": str(answer)})
    return json.dumps({**about, **answer.to_dict()})


def _text(row: dict[str, Any], answer: Prediction | Exception) -> str:
    title = str(row.get("image", "?"))
    if isinstance(answer, Exception):
        return f"{title}\n  ERROR {answer}"
    lines = [title]
    for a in answer.answers:
        mask = f"[MASK] {a['mask'] + 1}: " if "mask" in a else ""
        box = f"  {[round(x, 1) for x in a['box']]}" if "box" in a else ""
        lines.append(f"  {100 * a['probability']:6.2f} %  {mask}{a['answer']}{box}")
    for region in answer.regions:
        best = ", ".join(f"{x['label']} {100 * x['probability']:.1f} %" for x in region["labels"])
        lines.append(f"  box {answer.names[region['box']]}: {best}")
    return "\n".join([*lines, *(f"  note: {note}" for note in answer.notes)])

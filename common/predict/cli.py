"""The command line of prediction, one for all tasks: `predict_main(task_name, FIELDS)` is a whole entry point.

Heavy imports happen after the arguments are parsed, so that `--help` and a wrong flag answer at once.
"""

from __future__ import annotations

import argparse
import codecs
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from common.cli import guarded
from common.predict.answer_files import FORMATS, AnswerFile, format_of
from common.predict.fields import Field
from common.regions.arguments import DEFAULT_LIMITS, SOURCES, DetectorLimits, add_detector_arguments, detector_limits
from common.weights.sizes import MAX_PARAMETERS

if TYPE_CHECKING:
    from common.predict.predictor import Predictor

CONVERTERS: dict[str, Any] = {"text": str, "texts": str, "number": int, "numbers": int, "json": json.loads}

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
    max_parameters: int = MAX_PARAMETERS

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
            args.max_parameters,
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
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument(
        "--max-parameters",
        type=int,
        default=MAX_PARAMETERS,
        metavar="N",
        help=f"refuse a checkpoint whose config asks for more (default: {MAX_PARAMETERS})",
    )


def predict_main(task_name: str, fields: Sequence[Field], argv: Sequence[str] | None = None) -> None:
    """Entry point: predictions for images of the command line, or for every line of a JSON-lines file.

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
        items: Iterator[Item | Exception] = image_items(args.image, args.boxes_json, asked)
    else:
        items = read_lines(args.input, args.output)
    form = format_of(args.format, args.output, "json" if args.input else "text")
    options = PredictorOptions.from_args(args, task_name)
    sys.exit(guarded(write_predictions, options, items, args.output, form, args.batch, args.top_k))


def build_parser(task_name: str, fields: Sequence[Field]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=f"Ask a VL-BERT of {task_name} about images.")
    add_predictor_arguments(parser)
    parser.add_argument(
        "--image", nargs="+", metavar="FILE|DIR", help="images to ask about; of a folder, all images in it"
    )
    for f in fields:
        several = "+" if f.kind in ("texts", "numbers") else None
        parser.add_argument(f"--{f.name}", help=f.help, type=CONVERTERS[f.kind], nargs=several)
    parser.add_argument(
        "--boxes-json", type=json.loads, metavar="LIST", help="boxes of one --image: [[x1, y1, x2, y2], ...]"
    )
    parser.add_argument(
        "--input",
        metavar="FILE",
        help='many inputs: a JSON object a line with "image" and the fields above; - is stdin',
    )
    parser.add_argument("--output", metavar="FILE", help="where to write, as .csv, .json or .jsonl (default: stdout)")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="default: by the ending of --output; else text for --image, JSON lines for --input",
    )
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="how many answers (default: 5)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="inputs at a time (default: 16)")
    return parser


def write_predictions(
    options: PredictorOptions,
    items: Iterable[Item | Exception],
    output: str | None,
    form: str,
    batch_size: int,
    top_k: int,
) -> int:
    """Answer the items, `batch_size` at a time, and write each answer when it is there. Returns the exit status.

    items: inputs, and errors in the place of inputs that could not be read. output: None for stdout. form: of FORMATS;
    JSON in a file that ends in .json is one list.
    """
    from tqdm import tqdm

    items = iter(items)
    chunk = list(islice(items, batch_size))  # an input file that is missing leaves the output as it was
    predictor = options.load()
    status = 0
    with ExitStack() as stack:
        out = stack.enter_context(open_output(output))
        answers = AnswerFile(out, form, as_list=Path(output or "").suffix.lower() == ".json")
        bar = stack.enter_context(tqdm(unit="input", disable=len(chunk) < 2 or not sys.stderr.isatty()))
        while chunk:
            predictions = predictor.many((i for i in chunk if isinstance(i, dict)), batch_size, top_k=top_k)
            for item in chunk:
                answer = next(predictions) if isinstance(item, dict) else item
                status = 1 if isinstance(answer, Exception) else status
                answers.write(item if isinstance(item, dict) else {}, answer)
                bar.update()
            chunk = list(islice(items, batch_size))
        answers.end()
    return status


def open_output(path: str | None) -> AbstractContextManager[TextIO]:
    """The file to write to, None for stdout. A character that it cannot hold, such as a lone surrogate of an input, is
    written as an escape."""
    if path:
        return open(path, "w", encoding="utf-8", errors="backslashreplace", newline="")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return nullcontext(sys.stdout)


def image_items(images: Sequence[str], boxes: Any, asked: Mapping[str, Any]) -> Iterator[Item | Exception]:
    """One item for each image, in order; the images of a folder are sorted by name. boxes: of a single image.

    Raises DataError for a folder without images, and for boxes with several images.
    """
    from common.errors import DataError
    from common.files.archives import list_files
    from common.files.images import IMAGE_SUFFIXES

    paths: list[str] = []
    for image in images:
        names = list_files(image, IMAGE_SUFFIXES) if Path(image).is_dir() else [""]
        if not names:
            raise DataError(f"--image {image}: no image in this folder: expected {', '.join(IMAGE_SUFFIXES)}")
        paths += [str(Path(image) / name) if name else image for name in names]
    if boxes is not None and len(paths) > 1:
        raise DataError(f"--boxes-json: expected one image, got {len(paths)}; --input takes boxes for each image")
    yield from ({"image": path, "boxes": boxes, **asked} for path in paths)


def read_lines(path: str, output: str | None = None) -> Iterator[Item | Exception]:
    """The items of a JSON-lines file, "-" for stdin, read when they are taken; an error for a line without an object.

    A file of UTF-16 is one error. Raises FileNotFoundError, and DataError where `output` is the same file.
    """
    from common.errors import DataError

    if path != "-" and output and Path(output).exists() and Path(path).exists() and Path(output).samefile(path):
        raise DataError(
            f"--output {output}: expected another file than --input, which is read while answers are written"
        )
    stdin = getattr(sys.stdin, "buffer", sys.stdin)
    with nullcontext(stdin) if path == "-" else open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1 and isinstance(line, bytes) and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                yield DataError(f"{path}: UTF-16 text: expected UTF-8")
                return
            try:
                text = line.decode("utf-8-sig") if isinstance(line, bytes) else line
                if text.strip():
                    yield _read_item(text, f"{path}, line {number}")
            except UnicodeDecodeError as error:
                yield DataError(f"{path}, line {number}: not UTF-8: {error}")
            except DataError as error:
                yield error


def _read_item(line: str, where: str) -> Item:
    """The object on a line. Raises DataError, also for NaN and for numbers that become infinite: they would come back
    in the answer, and are no JSON. where: the start of the message."""
    from common.errors import DataError
    from common.files.json_files import parse_object

    try:
        item = parse_object(line, where)
        json.dumps(item, allow_nan=False)
    except RecursionError as error:
        raise DataError(f"{where}: nested too deeply") from error
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{where}: NaN or an infinite number: expected finite numbers") from error
    return item

"""A trained model of precomputed features as a file that runs without this code: ONNX, or a torch.export program.

python -m common.export --ckpt FILE -o model.onnx          or -o model.pt2

Inputs and outputs are named; batch, words and regions may be of any number (INPUTS in common/predict/export.py).
Beside the file, <name>.json lists them, the task and the scales of images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.cli import guarded
from common.predict.cli import add_predictor_arguments, open_predictor


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m common.export", description=__doc__.split("\n")[0])
    add_predictor_arguments(parser)
    parser.add_argument("--task", help="task of a checkpoint that does not say it")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a name in .onnx or .pt2")
    return guarded(_main, parser.parse_args(argv))


def _main(args: argparse.Namespace) -> None:
    from common.predict.export import export

    about = export(open_predictor(args.task, args), args.output)
    print(
        f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB, {', '.join(about['inputs'])} -> {about['outputs']}"
    )


if __name__ == "__main__":
    sys.exit(main())

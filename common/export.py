"""A trained model as a folder to hand on, or as a file that runs without this code: ONNX or a torch.export program.

python -m common.export --ckpt FILE -o model.onnx          or -o model.pt2, for a model of precomputed features
python -m common.export --ckpt FILE -o DIR/                weights, config, vocabulary and model card of any model

Inputs and outputs are named; batch, words and regions may be of any number (INPUTS in common/predict/export.py).
A file <name>.json beside it lists the inputs, the outputs, the task and the scales of images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.cli import guarded
from common.predict.cli import PredictorOptions, add_predictor_arguments


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m common.export", description=__doc__.split("\n")[0])
    add_predictor_arguments(parser)
    parser.add_argument("--task", help="task of a checkpoint that does not name it")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE|DIR/",
        help="a name in .onnx or .pt2, or a folder with / at its end",
    )
    parser.add_argument("--license", default="unknown", help="of the weights, for the model card of a folder")
    args = parser.parse_args(argv)
    return guarded(_export, PredictorOptions.from_args(args, args.task), args.output, args.license)


def _export(options: PredictorOptions, target: str, licence: str) -> None:
    from common.predict.export import export

    output = Path(target)
    if target.endswith("/") or output.is_dir():
        options.load().save_pretrained(output, licence)
        print(f"{output}/: {', '.join(sorted(path.name for path in output.iterdir()))}")
        return

    about = export(options.load(), output)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, {', '.join(about['inputs'])} -> {about['outputs']}")


if __name__ == "__main__":
    sys.exit(main())

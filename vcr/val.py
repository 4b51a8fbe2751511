"""Accuracy of the answers, of the rationales, and of both together on the validation questions.

python vcr/val.py --a-cfg A.yaml --a-ckpt A.model --r-cfg R.yaml --r-ckpt R.model

Writes the scores of a net to <result-name>_{a,r}_pred.npy, float64 [n, 4] before the softmax, and the annot_id of each
row to a .json of the same name.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.cli import guarded_on
from vcr.two_nets import LETTERS, Half, NetFlags, add_arguments, load_halves, net_flags, start_group

if TYPE_CHECKING:
    from vcr.scores import Predictions

BATCH_KEY = "VAL.BATCH_IMAGES"


@dataclass(frozen=True)
class Flags:
    """The command line. annot: annotations with the labels, None for those of the config."""

    nets: tuple[NetFlags, NetFlags]
    result_path: Path
    result_name: str
    annot: Path | None
    use_cache: bool
    cudnn: bool


def main() -> None:
    parser = argparse.ArgumentParser(description="VCR accuracy of one or both halves of the task, and of both jointly.")
    add_arguments(parser, BATCH_KEY)
    parser.add_argument("--result-path", default="./vcr_val_results", metavar="DIR", help="folder of the predictions")
    parser.add_argument("--result-name", default="vl-bert", metavar="NAME", help="stem of the prediction files")
    parser.add_argument(
        "--annot", metavar="FILE", help="annotations with the labels (default: the validation file of the config)"
    )
    parser.add_argument("--cudnn-off", action="store_true", help="do not use cuDNN")
    args = parser.parse_args()
    if not args.a_cfg and not args.r_cfg and not (args.use_cache and args.annot):
        parser.error("give --a-cfg, --r-cfg or both, or --use-cache with --annot")
    flags = Flags(
        nets=net_flags(args, BATCH_KEY),
        result_path=Path(args.result_path),
        result_name=args.result_name,
        annot=Path(args.annot) if args.annot else None,
        use_cache=args.use_cache,
        cudnn=not args.cudnn_off,
    )
    sys.exit(guarded_on(args.gpus, _run, flags))


def _run(flags: Flags) -> None:
    import torch

    from common import distributed
    from vcr.annotations import Annotations
    from vcr.scores import format_scores

    torch.backends.cudnn.enabled = flags.cudnn
    halves = load_halves(flags.nets)
    start_group(halves)
    annotations = Annotations(flags.annot or _val_file(halves[-1]), with_labels=True)
    by_letter = {half.letter: half for half in halves}
    predictions = {letter: _predictions(by_letter.get(letter), letter, flags) for letter in LETTERS}
    if distributed.is_main():
        print(format_scores(annotations, predictions["a"], predictions["r"]))


def _val_file(half: Half) -> Path:
    return Path(half.cfg.DATASET.DATASET_PATH) / half.cfg.DATASET.VAL_ANNOTATION_FILE


def _predictions(half: Half | None, letter: str, flags: Flags) -> Predictions | None:
    """Predictions of a net from the cache, or computed and kept there; None where there is neither cache nor config.

    All processes must call it. Only the first one returns what was computed.
    """
    from common import distributed
    from vcr.scores import Predictions

    path = flags.result_path / f"{flags.result_name}_{letter}_pred.npy"
    if distributed.broadcast_object(flags.use_cache and Predictions.exist(path)):
        return Predictions.load(path)
    if half is None:
        return None
    predictions = _compute(half)
    if predictions is not None:
        predictions.save(path)
    return predictions


def _compute(half: Half) -> Predictions | None:
    from common import distributed
    from common.task import load_task
    from common.train.run import predict
    from common.weights.restore import load_trained
    from vcr.scores import Predictions

    task = load_task("vcr")
    loaded = load_trained(task, half.cfg, half.cfg_path, half.ckpt)
    records, dataset = predict(task, half.cfg, loaded, "val")
    return Predictions.of(records, dataset.ids) if distributed.is_main() else None


if __name__ == "__main__":
    main()

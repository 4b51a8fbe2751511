"""A detector with random weights in the file format of pretrained ones, to try the pipeline before a download.

    python -m data.random_detector --out model/pretrained_model/random-detector.safetensors
    python -m data.random_detector --kind torchvision --out model/pretrained_model/random-fasterrcnn.pth

`vg` is the Visual Genome detector (box source vg:FILE), `torchvision` its fasterrcnn_resnet50_fpn with 91 classes
(detector:FILE). Boxes and classes mean nothing. The scale of the weights keeps activations bounded, and makes scores
differ between boxes, so that 10 to 100 boxes of an image are kept.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from common.detect.weights import DetectorSizes

CLASS_GAIN = 8.0  # of the class scores: the larger, the more boxes have a class of high probability


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help=".safetensors for vg, .pth for torchvision")
    parser.add_argument("--kind", choices=("vg", "torchvision"), default="vg")
    parser.add_argument("--layers", type=int, choices=(50, 101), help="default: 101 for vg; torchvision has 50")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    suffixes = (".safetensors",) if args.kind == "vg" else (".pth", ".pt")
    if args.out.suffix not in suffixes:
        parser.error(f"--out {args.out}: the name has to end in {' or '.join(suffixes)} for --kind {args.kind}")
    if args.kind == "torchvision" and args.layers == 101:
        parser.error("--kind torchvision has 50 layers")
    if args.kind == "vg":
        write_visual_genome(args.out, args.layers or 101, args.seed)
    else:
        write_torchvision(args.out, args.seed)
    print(f"{args.out}: detector ({args.kind}) of RANDOM weights, seed {args.seed}")
    return 0


def write_visual_genome(path: Path, num_layers: int, seed: int) -> None:
    from common.detect.weights import DetectorSizes
    from data.regions.convert_detector import save_detector

    save_detector(path, random_state(DetectorSizes(num_layers), seed), {"source": f"random weights of seed {seed}"})


def random_state(sizes: DetectorSizes, seed: int) -> dict[str, Tensor]:
    """The state dict of a VisualGenomeDetector of these sizes with random weights."""
    import torch  # slow to import: `--help` answers without it

    from common.detect.weights import detector_table

    generator = torch.Generator().manual_seed(seed)
    state = {entry.key: _random(entry.key, entry.shape, generator) for entry in detector_table(sizes)}
    for leaf in ("weight", "bias"):
        state[f"rpn.deltas.{leaf}"] *= 0.2
        state[f"cls_score.{leaf}"] *= CLASS_GAIN
    counters = [key.replace("running_mean", "num_batches_tracked") for key in state if key.endswith("running_mean")]
    return state | {key: torch.tensor(0) for key in counters}


def _random(key: str, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Random numbers of the scale that keeps activations bounded. Inputs of the network are pixels of up to 150, which
    the first batch norm divides by 100."""
    import torch

    x = torch.randn(shape, generator=generator)
    leaf = key.rpartition(".")[2]
    if leaf == "running_var":
        return (1 + 0.1 * x.abs()) * (1e4 if key == "backbone.bn1.running_var" else 1)
    if leaf == "running_mean":
        return 0.1 * x
    if leaf == "bias":
        return 0.02 * x
    if key.endswith("bn3.weight"):
        return 0.2 + 0.02 * x  # of what a block adds to its shortcut
    if len(shape) == 1:
        return 1 + 0.1 * x
    if key == "cls_embedding.weight":
        return 0.15 * x
    return x * ((2 if len(shape) == 4 else 1) / math.prod(shape[1:])) ** 0.5


def write_torchvision(path: Path, seed: int) -> None:
    from common.weights.checkpoint import save_file

    save_file(path, torchvision_state(seed))


def torchvision_state(seed: int) -> dict[str, Tensor]:
    """The state dict of torchvision's fasterrcnn_resnet50_fpn of 91 classes with random weights."""
    import torch
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).state_dict()
    for key, value in state.items():
        if key.endswith("bn3.weight"):
            value.fill_(0.2)
    state["rpn.head.cls_logits.weight"] *= 10
    state["roi_heads.box_predictor.cls_score.weight"] *= 10
    return state

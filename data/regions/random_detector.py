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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from common.detect.weights import DetectorSizes

CLASS_GAIN, ATTRIBUTE_GAIN = 16.0, 16.0  # of the scores: the larger, the more boxes have a class of high probability
SPREAD = 3.0  # standard deviation of torchvision's class scores between boxes


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
        state[f"rpn.objectness.{leaf}"] *= 0.3  # otherwise the best proposals all have nearly 1
        state[f"rpn.deltas.{leaf}"] *= 0.2
        state[f"cls_score.{leaf}"] *= CLASS_GAIN
        state[f"attr_score.{leaf}"] *= ATTRIBUTE_GAIN
    _centre_scores(state, _features(state, sizes.num_layers, generator))
    counters = [key.replace("running_mean", "num_batches_tracked") for key in state if key.endswith("running_mean")]
    return state | {key: torch.tensor(0) for key in counters}


def _centre_scores(state: Mapping[str, Tensor], features: Tensor) -> None:
    """Change biases so that every class and attribute has the mean score 0 over these features [R, 2048].

    Features are positive: otherwise one class has most boxes.
    """
    import torch

    weight, bias = state["cls_score.weight"], state["cls_score.bias"]
    bias -= weight @ features.mean(0)
    label = state["cls_embedding.weight"][(features @ weight.T + bias).argmax(1)]
    hidden = torch.relu(torch.cat([features, label], 1) @ state["fc_attr.weight"].T + state["fc_attr.bias"])
    state["attr_score.bias"].sub_(state["attr_score.weight"] @ hidden.mean(0))


def _features(state: Mapping[str, Tensor], num_layers: int, generator: Generator) -> Tensor:
    """The pool5 features [9, 2048] of boxes in an image of noise."""
    import torch
    from torchvision.ops import roi_pool

    from common.nn.resnet import ResNetC4, build_c5

    with torch.device("meta"):
        trunk, head = ResNetC4(num_layers, stride_in_1x1=True), build_c5(True, True, True)
    for module, prefix in ((trunk, "backbone."), (head, "head.")):
        own = {key: state.get(prefix + key, torch.tensor(0)) for key in module.state_dict()}
        module.load_state_dict(own, assign=True)
    with torch.no_grad():
        features = trunk(255 * _noise(generator) - 117)  # (1, 1024, 20, 27)
        boxes = torch.tensor([[0, x, y, x + 150, y + 150] for x in (0, 135, 270) for y in (0, 80, 160)])
        return head(roi_pool(features, boxes.float(), 14, 1 / 16)).mean((2, 3))


def _noise(generator: Generator) -> Tensor:
    """A smooth image of random colours, [1, 3, 320, 432] in 0..1."""
    import torch
    import torch.nn.functional as F

    return F.interpolate(torch.rand(1, 3, 10, 14, generator=generator), size=(320, 432), mode="bilinear")


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

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).eval()
        for name, value in model.named_buffers():
            if name.endswith("bn3.weight"):
                value.fill_(0.2)  # of what a block adds to its shortcut
        images, _ = model.transform([_noise(torch.Generator().manual_seed(seed))[0]])
        maps = model.backbone(images.tensors)
        proposals, _ = model.rpn(images, maps)
        heads = model.roi_heads
        features = heads.box_head(heads.box_roi_pool(maps, proposals, images.image_sizes))  # (1000, 1024)
        scores = heads.box_predictor.cls_score
        scores.weight *= SPREAD / (features @ scores.weight.T).std(0).mean()
        scores.bias -= scores.weight @ features.mean(0)
    return model.state_dict()

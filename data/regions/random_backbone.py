"""A ResNet with random weights in the file format of pretrained ones, for runs without a pretrained ResNet.

    python -m data.random_backbone --images DIR --layers 50 --out model/pretrained_model/random-resnet50-0000.model

Such a network computes a random projection of the image. This is enough to try the whole pipeline, or to separate the
images of a small training set, and useless for anything else. Batch norm statistics are measured on the images: with
the initial ones the activations would grow from block to block.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.files.images import IMAGE_SUFFIXES, load_image

if TYPE_CHECKING:
    from torch import Tensor

MEANS, STDS = (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0)  # of the BGR channels, as in the shipped configs
SIDE = 224


def random_backbone(num_layers: int, images: Sequence[Path], seed: int = 0) -> dict[str, Tensor]:
    """Returns the state dict of torchvision's ResNet of `num_layers` with random weights and batch norms measured on
    `images`."""
    import torch  # slow to import: `--help` answers without it
    import torchvision
    from torch import nn

    from common.data.transforms import normalise, to_tensor

    torch.manual_seed(seed)
    network = getattr(torchvision.models, f"resnet{num_layers}")(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    resized = [load_image(str(path)).resize((SIDE, SIDE)) for path in images]
    with torch.no_grad():
        for batch in torch.stack([normalise(to_tensor(p), MEANS, STDS) for p in resized]).split(8):
            network.train()(batch)
    return network.state_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a ResNet of random weights as a backbone file.")
    parser.add_argument("--images", type=Path, required=True, help="folder of images to measure batch norms on")
    parser.add_argument("--layers", type=int, choices=(50, 101, 152), default=50)
    parser.add_argument("--limit", type=int, default=32, help="number of images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="<prefix>-0000.model")
    args = parser.parse_args()
    images = sorted(p for p in args.images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)[: args.limit]
    if not images:
        parser.error(f"{args.images} has no images")
    from common.weights.checkpoint import save_file

    save_file(args.out, random_backbone(args.layers, images, args.seed))
    print(f"{args.out}: ResNet-{args.layers} of RANDOM weights, batch norms of {len(images)} images")


if __name__ == "__main__":
    main()

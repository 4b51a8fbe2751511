"""The Visual Genome detector as a safetensors file, from a Caffe model or MILVLG's PyTorch port.

    python -m data.convert_detector resnet101_faster_rcnn_final.caffemodel -o detector.safetensors
    python -m data.convert_detector IN --resnet model/pretrained_model/resnet101-pt-vgbua

--resnet writes the ResNet alone to PREFIX-0000.model, which NETWORK.IMAGE_PRETRAINED takes. A file that exists is not
replaced without --overwrite.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.config.derived import numbered_file
from common.errors import UserError
from common.files.atomic import atomic_write

if TYPE_CHECKING:
    from torch import Tensor


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", metavar="IN", type=Path, help="a .caffemodel, or a .pth of MILVLG's port")
    parser.add_argument("-o", "--out", metavar="OUT.safetensors", type=Path, help="the whole detector")
    parser.add_argument("--resnet", metavar="PREFIX", help="the ResNet alone, as PREFIX-0000.model")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    args = parser.parse_args(argv)
    if not args.out and not args.resnet:
        parser.error("give -o OUT.safetensors, --resnet PREFIX, or both")
    if args.out and args.out.suffix != ".safetensors":
        parser.error(f"-o {args.out}: the name has to end in .safetensors")
    try:
        convert(args.weights, args.out, Path(numbered_file(args.resnet, 0)) if args.resnet else None, args.overwrite)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def convert(weights: Path, out: Path | None, resnet: Path | None, overwrite: bool = False) -> None:
    """Writes the detector to `out` and its ResNet to `resnet`, each unless None, and prints what matched.

    Raises FileExistsError for a target that exists without `overwrite`, and as `read_detector` does.
    """
    for target in (out, resnet):
        if target and target.exists() and not overwrite:
            raise FileExistsError(f"{target} exists; remove it, or replace it with --overwrite")
        if target and target.exists() and weights.exists() and target.samefile(weights):
            raise FileExistsError(f"{target} is the file to convert; give another name")
    from common.detect.weights import read_detector, weights_report  # torch is slow to import
    from common.weights.checkpoint import save_file

    read = read_detector(weights)
    print(weights_report(read, weights))
    if out:
        save_detector(out, read.state, {"source": weights.name, "source_sha256": sha256(weights)})
        print(f"{out}: detector of {read.sizes.num_layers} layers, {read.sizes.num_classes} classes")
    if resnet:
        save_file(resnet, resnet_state(read.state))
        print(f"{resnet}: its ResNet-{read.sizes.num_layers}")


def save_detector(path: Path, state: Mapping[str, Tensor], source: Mapping[str, str]) -> None:
    """Writes a state dict of VisualGenomeDetector as safetensors. source: further metadata of the file."""
    from safetensors.torch import save

    from common.detect.weights import METADATA

    content = save({key: value.contiguous() for key, value in state.items()}, {**METADATA, **source})
    with atomic_write(path) as file:
        file.write(content)


def resnet_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The ResNet of a detector in torchvision's names: the head is layer4, batch norms have four tensors."""
    renamed = {}
    for key, value in state.items():
        if key.startswith(("backbone.", "head.")) and not key.endswith("num_batches_tracked"):
            part, _, rest = key.partition(".")
            renamed[rest if part == "backbone" else f"layer4.{rest}"] = value.clone()
    return renamed


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

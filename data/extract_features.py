"""Region features of a folder of images, in the published JSON format and as a packed store.

    python -m data.extract_features --images DIR --boxes coco:INSTANCES.json --weights RESNET.model --out DIR [--packed]
    python -m data.extract_features --check STORE [--images DIR] [--boxes coco:INSTANCES.json]
    python -m data.extract_features --pack STORE --out NAME.packed [--dtype float16]
    python -m data.extract_features --pack FILE.tsv|DIR --out NAME.packed [--dtype float16] [--images DIR]
    python -m data.extract_features --unpack NAME.packed --out DIR
    python -m data.extract_features --images DIR --boxes vg:DETECTOR --out DIR --shard 1/2

The same command continues a stopped run: images with a valid region file are skipped. At the start every file that is
there is read in full (about 2 MB at 100 boxes). --shard i/n lets n runs share one folder; --limit counts first. A
second run on the same images is refused. An image that cannot be read is reported and left out, and the exit code is 1.
`<out>.info.json` records the settings and the outcome.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

from common.errors import ConfigError
from common.regions.arguments import DTYPES, SOURCES, add_detector_arguments, detector_limits

if TYPE_CHECKING:
    from data.regions.extract import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 if images failed or have problems, 2 for an error, 128 + signal when stopped."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = _parser().parse_args(argv)
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        return _run(args)
    except KeyboardInterrupt as stop:
        signum = signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT
        print(f"stopped by {signum.name}; the same command goes on with the images that are missing", file=sys.stderr)
        return 128 + signum
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, raised like Ctrl-C."""


def _raise_terminated(signum: int, frame: FrameType | None) -> None:
    raise _Terminated


def _run(args: argparse.Namespace) -> int:
    from data.regions.extract import run_check, run_extract, run_unpack  # torch is slow to import
    from data.regions.pack import run_pack

    if args.check:
        return run_check(args.check, args.images, args.boxes)
    if not args.out:
        raise ConfigError("--out is missing")
    if args.pack:
        run_pack(args.pack, args.out, args.dtype, args.images)
        return 0
    if args.unpack:
        run_unpack(args.unpack, args.out)
        return 0
    if not args.images or not args.boxes:
        raise ConfigError("--images and --boxes are needed")
    return run_extract(_settings(args))


def _settings(args: argparse.Namespace) -> Settings:
    from data.regions.extract import Network, Settings
    from data.regions.runs import Shard

    return Settings(
        images=args.images,
        boxes=args.boxes,
        out=args.out,
        network=Network(
            weights=args.weights,
            random_weights=args.random_weights,
            layers=args.layers,
            dilated_c5=not args.no_dilated,
            stride_in_1x1=not args.stride_in_3x3,
            scales=tuple(args.scales),
            precision=args.precision,
        ),
        limits=detector_limits(args),
        batch=args.batch,
        workers=args.workers,
        limit=args.limit,
        packed=args.packed,
        dtype=args.dtype,
        device=args.device,
        shard=Shard.parse(args.shard) if args.shard else Shard(),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", metavar="STORE", help="validate a folder, zip or packed store")
    mode.add_argument("--pack", metavar="STORE", help="convert JSON, TSV or .npz files to a packed store")
    mode.add_argument("--unpack", metavar="STORE", help="convert a packed store to a folder of JSON")
    parser.add_argument("--images", help="folder of images, or ARCHIVE.zip@/FOLDER")
    parser.add_argument("--boxes", help=f"where boxes come from: {SOURCES}")
    parser.add_argument("--out", help="folder of the JSON files, or target of --pack, --unpack")
    parser.add_argument("--packed", action="store_true", help="also write <out>.packed at the end")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of features in a packed store")
    parser.add_argument("--weights", help="ResNet weights, e.g. resnet101-pt-vgbua-0000.model")
    parser.add_argument("--random-weights", action="store_true", help="run without weights; the features mean nothing")
    parser.add_argument("--layers", type=int, choices=(50, 101, 152), default=101)
    parser.add_argument("--no-dilated", action="store_true", help="C5 with stride 2 (IMAGE_C5_DILATED false)")
    parser.add_argument("--stride-in-3x3", action="store_true", help="IMAGE_STRIDE_IN_1x1 false")
    parser.add_argument("--scales", type=int, nargs=2, default=(600, 1000), help="shorter, longest side in pixels")
    add_detector_arguments(parser)
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        help="images in a forward pass; above 1 the features near image borders change a little",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that decode images")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the network")
    parser.add_argument("--device", help="of the network (default: cuda if there is a GPU)")
    parser.add_argument("--limit", type=int, help="only the first N images (default: all)")
    parser.add_argument("--shard", metavar="i/n", help="part i of n of the images, after --limit (default: all)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

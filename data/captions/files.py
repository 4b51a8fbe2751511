"""The caption files that pretraining and the extraction of regions read, in their final place (original 7.1 to 7.4).

    python -m data.captions_files records --tsv Train_GCC-training.tsv --out data/conceptual-captions --split train
    python -m data.captions_files zip data/conceptual-captions/train_image

`records` writes `<split>.json` (image, caption) and `<split>_frcnn.json` (image, caption, frcnn), one JSON object a
line, in the order of the table, for the downloaded images. `zip` stores the files of a folder in `<folder>.zip`,
without compression and without the name of the folder, as DATASET.ZIP_MODE reads it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from tqdm import tqdm

from common.files.atomic import atomic_write
from data.captions.manifest import OK, read_manifest
from data.captions.table import read_table

SPLITS = ("train", "val")  # the values of DATASET.*_IMAGE_SET (original 5.2)


def image_file(out: Path, split: str, name: str) -> Path:
    """The ending is always .jpg: readers find the format from the content (original 7.1)."""
    return out / f"{split}_image" / f"{name}.jpg"


def manifest_file(out: Path, split: str) -> Path:
    return out / f"{split}_download.jsonl"


def record(split: str, name: str, words: Sequence[str]) -> dict[str, object]:
    """Returns the record of `<split>_frcnn.json`. The record of `<split>.json` is the same without frcnn."""
    return {
        "image": f"{split}_image.zip@/{name}.jpg",
        "caption": list(words),
        "frcnn": f"{split}_frcnn.zip@/{name}.json",
    }


def write_records(table: Path, out: Path, split: str, with_regions: bool = False, overwrite: bool = False) -> int:
    """Writes both files for the images of the manifest that are on disk. Returns the number of records.

    with_regions: only images with regions in `<split>_frcnn`. Raises as `write_pairs` does.
    """
    from common.regions.open import open_regions  # imports torch: `--help` answers without it

    known = read_manifest(manifest_file(out, split))
    regions = open_regions(out / f"{split}_frcnn") if with_regions else None

    def pairs() -> Iterator[tuple[str, Sequence[str]]]:
        for row in read_table(table):
            entry = known.get(row.number)
            if row.fault or entry is None or entry.status != OK or not image_file(out, split, row.name).is_file():
                continue
            if regions is None or row.name in regions:
                yield row.name, row.words

    return write_pairs(out, split, pairs(), overwrite)


def write_pairs(out: Path, split: str, pairs: Iterable[tuple[str, Sequence[str]]], overwrite: bool = False) -> int:
    """Writes `<split>.json` and `<split>_frcnn.json` from pairs (name of the image, words). Returns the number of
    records.

    Raises FileExistsError, and changes no file, if an existing file has more lines and `overwrite` is False.
    """
    paths = out / f"{split}.json", out / f"{split}_frcnn.json"
    count = 0
    with ExitStack() as stack:
        plain, full = (stack.enter_context(atomic_write(path)) for path in paths)
        for name, words in pairs:
            line = record(split, name, words)
            full.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            del line["frcnn"]
            plain.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            count += 1
        for path in paths:
            if not overwrite and (before := _count_lines(path)) > count:
                raise FileExistsError(
                    f"{path} has {before} records, the new one would have {count}: --overwrite if it may go"
                )
    return count


def _count_lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with open(path, "rb") as lines:
        return sum(1 for _ in lines)


def write_zip(folder: Path, overwrite: bool = False) -> Path:
    """Writes `<folder>.zip` with the files directly in a folder, in the order of their names. Returns its path.

    Members are not compressed and stand at the root. Only their names are in memory, and their size and number are
    unlimited (zip64). Raises FileExistsError for an existing archive unless `overwrite`, and FileNotFoundError for an
    empty folder.
    """
    target = folder.with_name(folder.name + ".zip")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; --overwrite replaces it")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file() and not entry.name.startswith("."))
    if not names:
        raise FileNotFoundError(f"{folder}: has no files")
    with atomic_write(target) as file, ZipFile(file, "w", ZIP_STORED) as archive:
        for name in tqdm(names, unit="file", desc=target.name):
            _add(archive, folder / name)
    return target


def _add(archive: ZipFile, path: Path) -> None:
    info = ZipInfo.from_file(path, path.name, strict_timestamps=False)
    with open(path, "rb") as source, archive.open(info, "w") as member:
        shutil.copyfileobj(source, member, 1 << 20)


# Command line


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 if nothing was written."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "zip":
            for folder in args.folders:
                print(f"{write_zip(folder, args.overwrite)}")
            return 0
        count = write_records(args.tsv, args.out, args.split, args.with_regions, args.overwrite)
        print(f"{count} records in {args.out / args.split}.json and {args.out / args.split}_frcnn.json")
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data.captions_files", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    records = commands.add_parser("records", help="write <split>.json and <split>_frcnn.json")
    records.add_argument("--tsv", type=Path, required=True, help="the table that was downloaded")
    records.add_argument("--out", type=Path, required=True, help="folder of the data")
    records.add_argument("--split", required=True, choices=SPLITS, help="part of the data set")
    records.add_argument("--with-regions", action="store_true", help="leave out images without a region file")
    records.add_argument("--overwrite", action="store_true", help="even if there were more records before")
    archive = commands.add_parser("zip", help="write <folder>.zip")
    archive.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    archive.add_argument("--overwrite", action="store_true", help="replace an existing archive")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Packing of region stores and of public features. data/extract_features.py is the command line."""

from __future__ import annotations

import time
from pathlib import Path

from tqdm import tqdm

from common.regions.open import open_regions
from common.regions.packed_store import pack, packed_writer
from data.regions.public import PublicImages, open_public


def run_pack(path: str, out: str, dtype: str, images: str | None = None) -> None:
    """Packs a region store, or public features (see `data.regions.public`), and prints a summary.

    images: folder of the image files, for features whose boxes are fractions of the image.
    """
    public = open_public(path, images)
    if public is not None:
        print(pack_public(public, out, dtype, origin=Path(path).name))
        return
    store = pack(open_regions(path), out, dtype)
    print(f"{out}: {store.meta['count']} images, {store.meta['rows']} boxes, {dtype}")


def pack_public(public: PublicImages, out: str | Path, dtype: str = "float32", origin: str = "") -> str:
    """Writes public features as a packed store and returns the summary. Memory does not grow with the features.

    origin: kept in meta.json. Raises RegionError naming file and line, and what `packed_writer` raises.
    """
    start = time.perf_counter()
    with (
        packed_writer(out, dtype, {"origin": origin}) as writer,
        tqdm(total=public.total_bytes, unit="B", unit_scale=True, desc="pack") as progress,
    ):
        for name, regions in public:
            writer.add(name, regions)
            progress.update(public.bytes_read - progress.n)
        progress.update(public.bytes_read - progress.n)
    summary = (
        f"{out}: {writer.count} images, {writer.rows} boxes, {dtype}, {public.duplicates} duplicates skipped, "
        f"{time.perf_counter() - start:.1f} s"
    )
    if "class_scores" not in writer.columns:
        summary += "; no class scores: good for fine-tuning, not for pretraining with NETWORK.WITH_MVRC_LOSS"
    return summary

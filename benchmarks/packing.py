"""Packing of a public TSV file of region features, and reading of the store beside reading the JSON form."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import interleaved, medians
from common.regions.json_store import JsonRegions, save_regions
from common.regions.open import open_regions
from common.regions.regions import FEATURE_DIM, RegionStore
from data.regions.public import open_public

IMAGES, BOXES, READ = 500, 36, 100  # READ: images that are read in each form
HEADER = ["what", "images/s", "MB/s", "peak MiB"]


def measure_packing(rounds: int, images: int = IMAGES) -> list[list[str]]:
    """Images and megabytes a second, medians over rounds, and the peak of the resident memory beyond that of the
    imports where a process of its own does the work.

    The megabytes are those of the TSV file where it is packed or copied, those of float32 features where images are
    read. All files are in the page cache. The copy of the file shows what the disk and the system allow.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tsv = root / "features.tsv"
        write_tsv(tsv, images)
        rows = [_copy_row(tsv, images, rounds)]
        for dtype in ("float32", "float16"):
            runs = [_pack(tsv, root / f"{dtype}.packed", dtype) for _ in range(rounds)]
            seconds = float(np.median([run["seconds"] for run in runs]))
            peak = max(run["peak"] for run in runs) / 2**20
            rows.append(_row(f"pack, {dtype}", images, seconds, tsv.stat().st_size, f"{peak:.0f}"))
        return rows + _reading_rows(root, tsv, rounds)


def write_tsv(path: Path, images: int) -> None:
    """Writes images with BOXES boxes in the six columns of bottom-up-attention. Features are half zeros, as of a
    ReLU."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for number in range(1, images + 1):
            corner = rng.random((BOXES, 2), dtype=np.float32) * 300
            boxes = np.concatenate([corner, corner + 20 + rng.random((BOXES, 2), dtype=np.float32) * 150], axis=1)
            features = np.maximum(rng.standard_normal((BOXES, FEATURE_DIM), dtype=np.float32), 0)
            columns = [b"%d" % number, b"640", b"480", b"%d" % BOXES, base64.b64encode(boxes.tobytes())]
            file.write(b"\t".join([*columns, base64.b64encode(features.tobytes())]) + b"\n")


def _row(what: str, images: int, seconds: float, size: float, peak: str = "") -> list[str]:
    return [what, f"{images / seconds:.0f}", f"{size / seconds / 1e6:.0f}", peak]


def _copy_row(tsv: Path, images: int, rounds: int) -> list[str]:
    def copy() -> None:
        with tsv.open("rb") as source, tsv.with_suffix(".copy").open("wb") as target:
            while block := source.read(2**20):
                target.write(block)

    seconds = medians(interleaved({"copy": copy}, rounds, torch.device("cpu")))["copy"]
    return _row("copy of the file", images, seconds, tsv.stat().st_size)


def _pack(tsv: Path, out: Path, dtype: str) -> dict[str, Any]:
    """Seconds and peak bytes of packing, in a process of its own. Replaces `out`."""
    command = [sys.executable, "-c", _PACK, str(tsv), str(out), dtype]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


_PACK = r"""
import json, re, shutil, sys, time
from pathlib import Path
from common.regions.packed_store import packed_writer
from data.regions.pack import pack_public
from data.regions.public import open_public
def resident(key):
    return 1024 * int(re.search(key + r":\s*(\d+)", Path("/proc/self/status").read_text())[1])
tsv, out, dtype = sys.argv[1:]
shutil.rmtree(out, ignore_errors=True)
before, start = resident("VmRSS"), time.perf_counter()
pack_public(open_public(tsv), out, dtype)
print(json.dumps({"seconds": time.perf_counter() - start, "peak": resident("VmHWM") - before}))
"""


def _reading_rows(root: Path, tsv: Path, rounds: int) -> list[list[str]]:
    """One row for each form: the regions of images with all of their features, in the order of the names."""
    (root / "json").mkdir()
    for (name, regions), _ in zip(open_public(tsv) or (), range(READ), strict=False):
        save_regions(root / "json", name, regions)
    names = JsonRegions(root / "json").names()
    stores = {
        "read JSON": open_regions(root / "json"),
        "read packed, float32": open_regions(root / "float32.packed"),
        "read packed, float16": open_regions(root / "float16.packed"),
    }

    def read(store: RegionStore) -> None:
        for name in names:
            store.regions(name).in_memory()

    runs = {what: partial(read, store) for what, store in stores.items()}
    seconds = medians(interleaved(runs, rounds, torch.device("cpu")))
    size = len(names) * BOXES * FEATURE_DIM * 4
    return [_row(what, len(names), median, size) for what, median in seconds.items()]

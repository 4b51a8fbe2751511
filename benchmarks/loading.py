"""Throughput of the VQA loader from three forms of the same regions, time of the steps from an image file to pixels,
and time to start a run."""

from __future__ import annotations

import io
import itertools
import json
import random
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.functional import resize

from benchmarks.measure import interleaved, medians
from common.config import load_config
from common.data.dataset import TaskDataset
from common.data.loader import BatchLoader
from common.data.transforms import look_up, look_up_bands, normalise, pixel_levels, resize_size, to_tensor
from common.regions.json_store import JsonRegions, save_regions
from common.regions.open import open_regions
from common.regions.packed_store import pack
from common.regions.regions import FEATURE_DIM, Regions, RegionStore
from common.task import load_task
from data.regions.extract import PIXEL_MEANS, PIXEL_STDS

CFG = "cfgs/vqa/base_4x16G_fp32.yaml"
IMAGES, QUESTIONS, BOXES = 48, 20, (10, 100)
WORDS = [f"word{i}" for i in range(500)]
ENTRY_POINTS = [
    "vqa/train_end2end.py",
    "vqa/test.py",
    "vqa/val.py",
    "vqa/predict.py",
    "vcr/train_end2end.py",
    "vcr/val.py",
    "vcr/test.py",
    "refcoco/train_end2end.py",
    "refcoco/test.py",
    "pretrain/train_end2end.py",
    "data.extract_features",
    "data.own",
    "data.captions_download",
    "data.captions_files",
    "data.scenes",
    "data.random_backbone",
    "viz.attention",
    "viz.serve",
    "common.doctor",
    "common.export",
    "common.model_report",
]
INDEXED = 440_000
SCALES = (600, 1000)  # of the shipped configurations


def measure_loader(rounds: int) -> list[list[str]]:
    """Samples a second, one row for each way and form of the regions (JSON, zip, packed store).

    Ways: the regions of images alone, and epochs of the training loader in batches of 32, in this process and from one
    worker. A warm-up brings the files into memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        forms = write_world(root)
        loaders = {
            f"{form} {how}": _loader(root, path, zipped, workers)
            for workers, how in enumerate(("in one process", "behind one worker"))
            for form, (path, zipped) in forms.items()
        }
        number = itertools.count()
        stores = {f"{form} regions alone": open_regions(path, zipped) for form, (path, zipped) in forms.items()}
        seconds = interleaved(
            {
                **{name: partial(_read_all, store) for name, store in stores.items()},
                **{name: partial(_epoch, loader, number) for name, loader in loaders.items()},
            },
            rounds,
            torch.device("cpu"),
        )
    found, count = medians(seconds), IMAGES * QUESTIONS
    rows = []
    for name, median in found.items():
        form, how = name.split(" ", 1)
        done = IMAGES if name in stores else count
        rows.append([how, form, f"{done / median:.0f}", f"{found[f'JSON {how}'] / median:.1f}"])
    return rows


def _read_all(store: RegionStore) -> None:
    for name in range(1, IMAGES + 1):
        store.regions(name).in_memory()


def _epoch(loader: BatchLoader, number: Iterator[int]) -> None:
    for _ in loader.epoch(next(number)):
        pass


def _loader(root: Path, regions: Path, zipped: bool, workers: int = 1) -> BatchLoader:
    keys = [
        f"DATASET.DATASET_PATH={root}",
        f"DATASET.REGION_PATH={regions}",
        f"DATASET.ZIP_MODE={zipped}",
        "DATASET.TRAIN_IMAGE_SET=train2014",
        f"DATASET.ANSWER_VOCAB_FILE={root}/answers.txt",
        "DATASET.ANSWER_VOCAB_SIZE=3129",
        f"NETWORK.BERT_MODEL_NAME={root}/vocab.txt",
        "NETWORK.PARTIAL_PRETRAIN=",
    ]
    dataset = load_task("vqa").build_dataset(load_config("vqa", CFG, keys), "train")
    assert isinstance(dataset, TaskDataset), "questions come from one data set"
    return BatchLoader(dataset, 32, shuffle=True, training=True, num_workers=workers)


def write_world(root: Path) -> dict[str, tuple[Path, bool]]:
    """Writes a small VQA data set. Returns the path of each form of its regions, and whether it is a zip."""
    rng, draw = random.Random(0), torch.Generator().manual_seed(0)
    write_questions(root, IMAGES * QUESTIONS, rng)
    images = [{"id": i, "width": 640, "height": 480} for i in range(1, IMAGES + 1)]
    (root / "annotations").mkdir()
    (root / "annotations/instances_train2014.json").write_text(json.dumps({"images": images}))
    (root / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", *WORDS]) + "\n")
    (root / "answers.txt").write_text("\n".join(["<unk>", *WORDS, *(f"a{i}" for i in range(3128 - len(WORDS)))]) + "\n")
    folder = root / "regions"
    folder.mkdir()
    for image in images:
        count = rng.randint(*BOXES)
        corner = torch.rand(count, 2, generator=draw) * 300
        boxes = torch.cat([corner, corner + 20 + torch.rand(count, 2, generator=draw) * 150], dim=1)
        features = torch.rand(count, FEATURE_DIM, generator=draw)
        save_regions(folder, str(image["id"]), Regions(boxes, features, width=640, height=480))
    with zipfile.ZipFile(root / "zipped.zip", "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    pack(JsonRegions(folder), root / "store.packed")
    return {"JSON": (folder, False), "zip": (root / "zipped.zip", True), "packed": (root / "store.packed", False)}


def write_questions(root: Path, count: int, rng: random.Random) -> None:
    """Writes `count` questions as those of train2014 and ten answers to each, in the official format."""
    (root / "vqa").mkdir(parents=True)
    with (
        open(root / "vqa/v2_OpenEnded_mscoco_train2014_questions.json", "w") as questions,
        open(root / "vqa/v2_mscoco_train2014_annotations.json", "w") as annotations,
    ):
        questions.write('{"questions": [')
        annotations.write('{"annotations": [')
        for i in range(count):
            comma = ", " if i else ""
            ids = {"image_id": i // QUESTIONS + 1, "question_id": i}
            text = f"what {' '.join(rng.choices(WORDS, k=7))}?"
            answers = [{"answer": rng.choice(WORDS), "answer_confidence": "yes", "answer_id": n} for n in range(10)]
            questions.write(comma + json.dumps({**ids, "question": text}))
            annotations.write(comma + json.dumps({**ids, "answers": answers, "multiple_choice_answer": "word0"}))
        questions.write("]}")
        annotations.write("]}")


def measure_pixels(rounds: int) -> list[list[str]]:
    """Milliseconds of the steps from a JPEG file of 640 x 480 to pixels of 800 x 600, and of the transport of a batch
    from a worker, for several implementations of each; and whether their values equal those of the first.

    On one thread, as in a worker.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    noise = torch.randint(0, 256, (60, 80, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = Image.fromarray(noise.numpy()).resize((640, 480), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    image = _decode(file)
    size = resize_size(*image.size, *SCALES)
    large, levels = image.resize(size, Image.Resampling.BILINEAR), pixel_levels(PIXEL_MEANS, PIXEL_STDS)
    coded, values = torch.frombuffer(file.getbuffer(), dtype=torch.uint8), _values(image)
    steps: dict[str, dict[str, Callable[[], Tensor]]] = {
        "decode": {
            "Pillow": lambda: _values(_decode(file)),
            "Pillow, draft": lambda: _values(_decode(file, size)),
            "torchvision": lambda: decode_jpeg(coded, ImageReadMode.RGB),
        },
        "resize": {
            "Pillow": lambda: _values(image.resize(size, Image.Resampling.BILINEAR)),
            "torch, uint8": lambda: resize(values, [size[1], size[0]], antialias=True),
            "torch, float32": lambda: resize(values.float(), [size[1], size[0]], antialias=True).round().byte(),
        },
        "to pixels": {
            "looked up": lambda: look_up(large, levels),
            "step by step": lambda: normalise(to_tensor(large), PIXEL_MEANS, PIXEL_STDS),
        },
    }
    rows: list[list[str]] = []
    for step, ways in steps.items():
        ours, *_ = (way() for way in ways.values())
        for name, seconds in medians(interleaved(ways, rounds, torch.device("cpu"))).items():
            same = torch.equal(ways[name](), ours)
            rows.append([step, name, f"{1000 * seconds:.2f}", "yes" if same else "no"])
    rows += _measure_transport(rounds, levels)
    torch.set_num_threads(threads)
    return rows


def _decode(file: io.BytesIO, size: tuple[int, int] | None = None) -> Image.Image:
    image = Image.open(file)
    if size is not None:
        image.draft("RGB", size)
    return image.convert("RGB")


def _values(image: Image.Image) -> Tensor:
    """uint8 [3, height, width]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _measure_transport(rounds: int, levels: np.ndarray) -> list[list[str]]:
    """Milliseconds of a batch of 4 images of 1000 x 600 from a worker, which or whose receiver looks up the pixels."""
    batches = 8
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 1000, 3), dtype=np.uint8))
    ways = {
        "float32": lambda: torch.stack([look_up(image, levels) for _ in range(4)]),
        "uint8, looked up by the receiver": lambda: torch.stack([_values(image) for _ in range(4)]),
    }
    loaders = {
        name: DataLoader(_Made(way, batches), batch_size=None, num_workers=1, persistent_workers=True)
        for name, way in ways.items()
    }

    def receive(loader: DataLoader) -> Tensor:
        for batch in loader:
            if batch.dtype == torch.uint8:
                batch = torch.stack([look_up_bands([*image.numpy()], levels) for image in batch])
        return batch

    runs = {name: partial(receive, loader) for name, loader in loaders.items()}
    found = medians(interleaved(runs, rounds, torch.device("cpu")))
    first, *_ = received = [run() for run in runs.values()]
    return [
        ["batch from a worker", name, f"{1000 * seconds / batches:.1f}", "yes" if torch.equal(batch, first) else "no"]
        for (name, seconds), batch in zip(found.items(), received, strict=True)
    ]


class _Made(Dataset[Tensor]):
    """`count` batches, each computed when it is read."""

    def __init__(self, make: Callable[[], Tensor], count: int) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return self.make()


def measure_start() -> list[list[str]]:
    """Seconds of --help of the entry points, and seconds and memory of indexing a training split of VQA."""
    helps = {
        name: partial(subprocess.run, [*command, "--help"], check=True, capture_output=True)
        for name in ENTRY_POINTS
        for command in [[sys.executable, *([name] if name.endswith(".py") else ["-m", name])]]
    }
    seconds = medians(interleaved(helps, 3, torch.device("cpu")))
    rows = [[f"{script} --help", f"{median:.2f}", ""] for script, median in seconds.items()]
    with tempfile.TemporaryDirectory() as folder:
        write_questions(Path(folder), INDEXED, random.Random(0))
        found: dict[str, Any] = json.loads(
            subprocess.run([sys.executable, "-c", _INDEX, folder], check=True, capture_output=True, text=True).stdout
        )
    return [*rows, [f"index of {found['questions']:,} questions", f"{found['seconds']:.1f}", f"{found['gib']:.2f}"]]


_INDEX = r"""
import json, re, sys, time
from pathlib import Path
from vqa.annotations import IMAGE_SETS, load_questions
start = time.perf_counter()
questions = load_questions(Path(sys.argv[1]), IMAGE_SETS["train2014"], True)
seconds = time.perf_counter() - start
gib = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20
print(json.dumps({"questions": len(questions), "seconds": seconds, "gib": gib}))
"""

"""Samples a second of the VQA loader from three forms of the same regions, and what starting a run costs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import interleaved, medians
from common.config import load_config
from common.data.loader import BatchLoader
from common.data.regions import FEATURE_DIM, JsonRegions, Regions, pack, save_regions
from common.task import load_task

CFG = "cfgs/vqa/base_4x16G_fp32.yaml"
PICTURES, QUESTIONS, BOXES = 48, 20, (10, 100)
WORDS = [f"word{i}" for i in range(500)]
ENTRY_POINTS = (
    *("vqa/train_end2end.py", "vqa/test.py", "vqa/val.py", "vqa/predict.py", "vcr/train_end2end.py", "vcr/val.py"),
    *("vcr/test.py", "refcoco/train_end2end.py", "refcoco/test.py", "pretrain/train_end2end.py"),
)
INDEXED = 440_000


def measure_loader(rounds: int) -> list[list[str]]:
    """Rows: epochs of the training loader with one worker, batches of 32, regions from JSON, zip and packed store."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        forms = write_world(root)
        loaders = {form: _loader(root, path, zipped) for form, (path, zipped) in forms.items()}
        number = iter(range(10**6))
        seconds = interleaved(
            {form: lambda loader=loader: _epoch(loader, next(number)) for form, loader in loaders.items()},
            rounds,
            torch.device("cpu"),
        )
    found, count = medians(seconds), PICTURES * QUESTIONS
    return [
        ["loader", form, f"{count / median:.0f}", f"{found['JSON'] / median:.1f}"] for form, median in found.items()
    ]


def _epoch(loader: BatchLoader, number: int) -> None:
    for _ in loader.epoch(number):
        pass


def _loader(root: Path, regions: Path, zipped: bool) -> BatchLoader:
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
    return BatchLoader(dataset, 32, shuffle=True, training=True, num_workers=1)


def write_world(root: Path) -> dict[str, tuple[Path, bool]]:
    """A small VQA data set with made-up regions. -> name of each form of them: its path, and whether it is a zip."""
    rng, draw = random.Random(0), torch.Generator().manual_seed(0)
    write_questions(root, PICTURES * QUESTIONS, rng)
    images = [{"id": i, "width": 640, "height": 480} for i in range(1, PICTURES + 1)]
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
    """The questions of train2014 and ten answers to each, in the official format."""
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


def measure_start() -> list[list[str]]:
    """Rows: seconds of --help of the entry points, and seconds and memory of indexing a training split of VQA."""
    helps = {
        script: partial(subprocess.run, [sys.executable, script, "--help"], check=True, capture_output=True)
        for script in ENTRY_POINTS
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

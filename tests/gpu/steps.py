"""Training steps through the product's Trainer on a FakeGpu. Runs with the shim only (fake_gpu.py)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

torch.inference_mode = torch.no_grad  # type: ignore[assignment,misc] # an inference tensor cannot be a CudaLike

from common.config import Config, load_config  # noqa: E402
from common.data.sample import Batch  # noqa: E402
from common.data.synthetic import made_up_batch  # noqa: E402
from common.precision import Precision  # noqa: E402
from common.task import Task, load_task  # noqa: E402
from common.train.optim import build_optimizer  # noqa: E402
from common.train.schedules import LinearSchedule  # noqa: E402
from common.train.settings import TrainerSettings  # noqa: E402
from common.train.trainer import Trainer  # noqa: E402
from tests.gpu.lookalike import FakeGpu, Kernel, Wait  # noqa: E402
from tests.paths import ROOT  # noqa: E402

DEVICE = torch.device("cuda", 0)
NEVER = 10**9


@dataclass
class Recorded:
    """What a FakeGpu saw of a step. samples: of its batch. describe: the batch and the model, for a heading."""

    waits: list[Wait]
    kernels: list[Kernel]
    samples: int
    describe: str


class Batches:
    """A loader of one batch, repeated. Notes in `marks` how far the records of `gpu` are before each batch."""

    base_seed = 0

    def __init__(self, batch: Batch, count: int, gpu: FakeGpu) -> None:
        self.batch, self.count, self.gpu = batch, count, gpu
        self.marks: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.count

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        for _ in range(start, self.count):
            batch = self.batch.pin_memory()  # the loader's thread does this
            self.marks.append((len(self.gpu.waits), len(self.gpu.kernels)))
            yield batch

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch()


def build_trainer(
    task: Task, cfg: Config, precision: str, batches: Batches, accumulate: int = 1, folder: Path | None = None
) -> Trainer:
    """A Trainer of a config, which reports at the first and the last batch only. Its parameters are on cuda:0."""
    with torch.device(DEVICE):  # large parameters are born without values
        model = task.build_model(cfg)
    model = model.to(DEVICE)
    return Trainer(
        model=model,
        optimizer=build_optimizer(cfg.TRAIN, model.named_parameters(), 1e-4),
        schedule=LinearSchedule(2, 100),
        precision=Precision(precision, DEVICE, "dynamic"),
        loader=batches,  # type: ignore[arg-type]
        metrics=task.build_metrics(cfg, True),
        settings=TrainerSettings(
            end_epoch=1, accumulate=accumulate, clip_norm=cfg.TRAIN.CLIP_GRAD_NORM, log_every=NEVER
        ),
        device=DEVICE,
        directory=folder or Path(tempfile.mkdtemp(prefix="fake-gpu-")),
        prefix="fake",
    )


def full_size_step(
    task_name: str, cfg_file: str, sets: Sequence[str], precision: str, limit: float, **sizes: Any
) -> Recorded:
    """The second of three steps with an update each."""
    task, cfg = load_task(task_name), load_config(task_name, ROOT / "cfgs" / cfg_file, list(sets))
    if "samples" not in sizes:
        size = cfg.TRAIN.BATCH_IMAGES
        sizes["samples"] = size if isinstance(size, int) else size[0]
    batch = made_up_batch(task.made_up, cfg, equal=True, **sizes)
    gpu = FakeGpu(limit)
    with gpu, torch.autograd.set_multithreading_enabled(False):
        gpu.recording = False
        trainer = build_trainer(task, cfg, precision, batches := Batches(batch, 3, gpu))
        trainer.model.train()
        loader = batches.epoch()
        trainer._train_batch(next(loader))
        gpu.recording = True
        trainer._train_batch(next(loader))
    count = sum(p.numel() for p in trainer.model.parameters()) / 1e6
    shapes = f"text {tuple(batch.text_ids.shape)}, boxes {tuple(batch.boxes.shape)}"
    shapes += f", image {tuple(batch.image.shape)}" if batch.image is not None else ""
    return Recorded(gpu.waits, gpu.kernels, len(batch), f"{count:.1f} M parameters, {shapes}")

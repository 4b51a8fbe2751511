"""Training steps through the product's Trainer on a FakeGpu. Runs with the shim only (fake_gpu.py)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


def _no_grad(mode: Any = True) -> Any:
    """In the place of torch.inference_mode: an inference tensor cannot be a CudaLike."""
    if callable(mode):
        return torch.no_grad()(mode)
    return torch.no_grad() if mode else nullcontext()


torch.inference_mode = _no_grad  # type: ignore[assignment,misc]

from common.config import Config, load_config  # noqa: E402
from common.data.sample import Batch  # noqa: E402
from common.data.synthetic import made_up_batch  # noqa: E402
from common.nn.cpu import exact  # noqa: E402
from common.precision import Precision  # noqa: E402
from common.task import Task, load_task  # noqa: E402
from common.train.optim import build_optimizer  # noqa: E402
from common.train.schedules import LinearSchedule  # noqa: E402
from common.train.settings import TrainerSettings  # noqa: E402
from common.train.trainer import Trainer  # noqa: E402
from tests.gpu.lookalike import CudaLike, FakeGpu, Kernel, Wait  # noqa: E402
from tests.paths import ROOT  # noqa: E402

DEVICE = torch.device("cuda", 0)
NEVER = 10**9

# A parameter on a GPU has the type nn.Parameter, which the fast path asks for. A CudaLike parameter keeps its own type.
exact.type = lambda x: torch.nn.Parameter if isinstance(x, CudaLike) else type(x)  # type: ignore[attr-defined]


@dataclass
class Recorded:
    """What a FakeGpu observed in a step. samples: of its batch. describe: model and batch, for a heading."""

    waits: list[Wait]
    kernels: list[Kernel]
    samples: int
    describe: str


class StopHere(Exception):  # noqa: N818 - ends an epoch that needs not be finished
    """Raised by Batches when the loop asks for a batch after the last."""


class Batches:
    """A loader of `count` equal batches of an epoch that is longer. Records on `gpu` during batches `record`."""

    base_seed = 0
    lost = ""  # no worker of the loader

    def __init__(self, batch: Batch, count: int, gpu: FakeGpu, record: range) -> None:
        self.batch, self.count, self.gpu, self.record = batch, count, gpu, record
        self._marks: list[tuple[int, int]] = []  # numbers of waits and kernels before each batch

    def __len__(self) -> int:
        return self.count + 1

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        for i in range(start, self.count):
            self.gpu.recording = False
            batch = self.batch.pin_memory()  # the loader's thread does this
            self._mark()
            self.gpu.recording = i in self.record
            yield batch
        self._mark()
        self.gpu.recording = False
        raise StopHere

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch()

    def records(self, i: int) -> tuple[list[Wait], list[Kernel]]:
        """Waits and kernels of batch i, counted from 0."""
        (w0, k0), (w1, k1) = self._marks[i : i + 2]
        return self.gpu.waits[w0:w1], self.gpu.kernels[k0:k1]

    def _mark(self) -> None:
        self._marks.append((len(self.gpu.waits), len(self.gpu.kernels)))


@contextmanager
def fake_gpu(limit: float = float("inf")) -> Iterator[FakeGpu]:
    """A FakeGpu whose backward runs in this thread. Recording is off."""
    gpu = FakeGpu(limit)
    gpu.recording = False
    with gpu, torch.autograd.set_multithreading_enabled(False):
        yield gpu


def read_config(task: str, file: str, changes: Mapping[str, Any] | Sequence[str]) -> Config:
    """file: a YAML below cfgs."""
    return load_config(task, ROOT / "cfgs" / file, changes)


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
        precision=Precision(precision, DEVICE, 128.0),
        loader=batches,  # type: ignore[arg-type]
        metrics=task.build_metrics(cfg, True),
        settings=TrainerSettings(
            end_epoch=1, accumulate=accumulate, clip_norm=cfg.TRAIN.CLIP_GRAD_NORM, log_every=NEVER
        ),
        device=DEVICE,
        directory=folder or Path(tempfile.mkdtemp(prefix="fake-gpu-")),
        prefix="fake",
        read_late=True,  # as in a run on a GPU
    )


def fit(trainer: Trainer) -> None:
    """Trains on all batches of the Trainer's Batches."""
    with suppress(StopHere):
        trainer.fit()


def full_size_step(
    task_name: str, cfg_file: str, sets: Sequence[str], precision: str, limit: float, **sizes: Any
) -> Recorded:
    """The second step of a run with an update each step."""
    task, cfg = load_task(task_name), read_config(task_name, cfg_file, list(sets))
    if "samples" not in sizes:
        size = cfg.TRAIN.BATCH_IMAGES
        sizes["samples"] = size if isinstance(size, int) else size[0]
    batch = made_up_batch(task.made_up, cfg, equal=True, **sizes)
    with fake_gpu(limit) as gpu:
        batches = Batches(batch, 2, gpu, record=range(1, 2))
        trainer = build_trainer(task, cfg, precision, batches)
        fit(trainer)
        waits, kernels = batches.records(1)
    count = sum(p.numel() for p in trainer.model.parameters()) / 1e6
    shapes = f"text {tuple(batch.text_ids.shape)}, boxes {tuple(batch.boxes.shape)}"
    shapes += f", image {tuple(batch.image.shape)}" if batch.image is not None else ""
    return Recorded(waits, kernels, len(batch), f"{count:.1f} M parameters, {shapes}")

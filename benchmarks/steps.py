"""Forward and training step of the tasks' models, beside the plain baseline and what pip offers instead."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.measure import Memory, interleaved, matmul_peak, medians
from benchmarks.plain import PlainAdamW, all_positions, plain_clip, plainly
from common.config import load_config
from common.data.batch import Batch
from common.data.synthetic import made_up_batch
from common.model_report import OTHER, PARTS, TOTAL, inference_step, training_step
from common.optim import AdamW, clip_grad_norm
from common.precision import Precision
from common.task import load_task

CLIP, LR = 1.0, 1e-5


@dataclass(frozen=True)
class Workload:
    """A config with the shape of its batch. peers: names of PEERS to measure beside it."""

    task: str
    cfg: str
    samples: int
    words: int
    boxes: int
    overrides: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()


NO_WEIGHTS = ("NETWORK.PARTIAL_PRETRAIN=",)
WORKLOADS = {
    "vqa-base": Workload("vqa", "cfgs/vqa/base_4x16G_fp32.yaml", 32, 20, 100, peers=("VisualBert", "Lxmert")),
    "vqa-large": Workload("vqa", "cfgs/vqa/large_4x16G_fp32.yaml", 8, 20, 100),
    "pretrain-base": Workload("pretrain", "cfgs/pretrain/base_prec_4x16G_fp32.yaml", 16, 20, 100),
    "pretrain-e2e-50": Workload("pretrain", "cfgs/pretrain/base_e2e_16x16G_fp16.yaml", 1, 20, 50),
    "pretrain-e2e-100": Workload("pretrain", "cfgs/pretrain/base_e2e_16x16G_fp16.yaml", 1, 20, 100),
    "vcr-base": Workload("vcr", "cfgs/vcr/base_q2a_4x16G_fp32.yaml", 1, 40, 16),
    "refcoco-base": Workload("refcoco", "cfgs/refcoco/base_gt_boxes_4x16G.yaml", 1, 10, 11),
}


class Step:
    """One model with its optimizer on one batch."""

    def __init__(self, model: nn.Module, batch: Batch, precision: Precision, plain: bool = False) -> None:
        self.model, self.batch, self.precision, self.plain = model, batch, precision, plain
        trained = [p for p in model.parameters() if p.requires_grad]
        kind = PlainAdamW if plain else AdamW
        self.optimizer = kind(trained, lr=LR, weight_decay=1e-4)

    def forward(self) -> None:
        self.model.eval()
        batch = Batch(**{**vars(self.batch), "targets": {}})
        with torch.inference_mode(), self.precision.autocast():
            self._call(batch)

    def train(self) -> None:
        self.model.train()
        with self.precision.autocast():
            loss = self._call(self.batch).loss
        loss.backward()
        if self.plain:
            plain_clip(self.model, CLIP)
        else:
            clip_grad_norm(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _call(self, batch: Batch) -> Any:
        if not self.plain:
            return self.model(batch)
        with plainly():
            return self.model(batch)


def measure(
    name: str, rounds: int, device: torch.device, precisions: Sequence[str], samples: int | None
) -> dict[str, Any]:
    """Figures of one workload, JSON-able: seconds, samples a second, ratios to the baseline, memory, FLOPs, MFU."""
    work = WORKLOADS[name]
    cfg = load_config(work.task, work.cfg, [*NO_WEIGHTS, *work.overrides])
    torch.manual_seed(0)
    batch = made_up_batch(work.task, cfg, samples or work.samples, work.words, work.boxes).to(device)
    model = load_task(work.task).build_model(cfg).to(device)
    steps = {"plain fp32": Step(all_positions(copy.deepcopy(model)), batch, Precision("fp32", device), plain=True)}
    steps |= {f"ours {p}": Step(model, batch, Precision(p, device)) for p in precisions}
    figures: dict[str, Any] = {"batch": len(batch), "kinds": {}}
    for kind in ("forward", "train"):
        candidates: dict[str, Callable[[], object]] = {n: getattr(s, kind) for n, s in steps.items()}
        seconds = interleaved(candidates, rounds, device)
        figures["kinds"][kind] = {"seconds": seconds, "median": medians(seconds)}
    figures["memory"] = {n: _memory(s, device) for n, s in steps.items()}
    figures["flops"] = _flops(model, batch, cfg, device)
    figures["mfu"] = {
        f"ours {p}": figures["flops"]["train"][TOTAL]
        / figures["kinds"]["train"]["median"][f"ours {p}"]
        / matmul_peak(Precision(p, device).dtype, device)
        for p in precisions
    }
    return figures


def _memory(step: Step, device: torch.device) -> int:
    with Memory(device) as memory:
        step.train()
    return memory.peak


def _flops(model: nn.Module, batch: Batch, cfg: Any, device: torch.device) -> dict[str, dict[str, int]]:
    """By part of the model; what our model computes, which is what the figures of MFU count."""
    precision = Precision("fp32", device)
    forward = inference_step(model, batch, precision)[0].flops
    return {"forward": forward, "train": training_step(model, batch, cfg, precision)[0].flops}


def rows(name: str, figures: dict[str, Any]) -> list[list[str]]:
    """Table rows: what, seconds, samples a second, ratio to plain, memory, MFU."""
    out = []
    for kind, found in figures["kinds"].items():
        base = found["median"]["plain fp32"]
        for candidate, median in found["median"].items():
            train = kind == "train"
            out.append(
                [
                    name,
                    kind,
                    candidate,
                    f"{median:.3f}",
                    f"{figures['batch'] / median:.1f}",
                    f"{base / median:.2f}",
                    f"{figures['memory'][candidate] / 2**30:.2f}" if train else "",
                    f"{figures['mfu'][candidate]:.0%}" if train and candidate in figures["mfu"] else "",
                ]
            )
    return out


HEADER = ["workload", "step", "what", "seconds", "samples/s", "x plain", "GiB", "MFU"]
__all__ = ["HEADER", "OTHER", "PARTS", "WORKLOADS", "measure", "rows"]

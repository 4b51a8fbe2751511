"""Forward and training step of the tasks' models, beside the plain baseline and what pip offers instead."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from benchmarks.measure import Memory, interleaved, matmul_peak, medians, synchronise
from benchmarks.peers import PeerStep, build_peer
from benchmarks.plain import PLAIN_MODEL, PlainAdamW, plain_clip
from common.config import Config, load_config
from common.data.sample import Batch
from common.data.synthetic import made_up_batch
from common.inspect.model_report import (
    OTHER,
    PARTS,
    TOTAL,
    inference_step,
    modules_of_parts,
    training_step,
)
from common.nn.cpu.memory import keep_freed_memory
from common.precision import Precision
from common.task import load_task
from common.train.adamw import AdamW
from common.train.optim import measure_clipping

CLIP, LR = 1.0, 1e-5
PLAIN = "plain fp32"


@dataclass(frozen=True)
class Workload:
    """A config with the shape of its batch. peers: what to measure beside it, names that `build_peer` knows.

    shared: the samples are questions about one image, as an evaluation meets them; forward only.
    """

    task: str
    cfg: str
    samples: int
    words: int
    boxes: int
    peers: tuple[str, ...] = ()
    shared: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("forward",) if self.shared else ("forward", "train")


NO_WEIGHTS = ("NETWORK.PARTIAL_PRETRAIN=",)
WORKLOADS = {
    "vqa-base": Workload("vqa", "cfgs/vqa/base_4x16G_fp32.yaml", 32, 20, 100, peers=("VisualBert",)),
    "vqa-base-lxmert": Workload("vqa", "cfgs/vqa/base_4x16G_fp32.yaml", 8, 20, 100, peers=("Lxmert",)),
    "vqa-large": Workload("vqa", "cfgs/vqa/large_4x16G_fp32.yaml", 8, 20, 100),
    "pretrain-base": Workload("pretrain", "cfgs/pretrain/base_prec_4x16G_fp32.yaml", 16, 20, 100),
    "pretrain-e2e-50": Workload("pretrain", "cfgs/pretrain/base_e2e_16x16G_fp16.yaml", 1, 20, 50),
    "pretrain-e2e-100": Workload("pretrain", "cfgs/pretrain/base_e2e_16x16G_fp16.yaml", 1, 20, 100),
    "vcr-base": Workload("vcr", "cfgs/vcr/base_q2a_4x16G_fp32.yaml", 1, 40, 16),
    "refcoco-base": Workload("refcoco", "cfgs/refcoco/base_gt_boxes_4x16G.yaml", 1, 10, 11),
    # Questions about an image: 7.1 expressions in RefCOCO+, 2.6 questions in VCR.
    "refcoco-evaluation": Workload("refcoco", "cfgs/refcoco/base_gt_boxes_4x16G.yaml", 7, 10, 11, shared=True),
    "vcr-evaluation": Workload("vcr", "cfgs/vcr/base_q2a_4x16G_fp32.yaml", 3, 40, 16, shared=True),
}


class Step:
    """One model with its optimizer on one batch."""

    def __init__(self, model: nn.Module, batch: Batch, precision: Precision, optimizer: AdamW | None = None) -> None:
        """optimizer: one that other steps of this model share, with its moments."""
        self.model, self.batch, self.precision = model, batch, precision
        self.optimizer = optimizer or build_adamw(model)
        self.plain = isinstance(self.optimizer, PlainAdamW)

    def forward(self) -> None:
        self.model.eval()
        batch = Batch(**{**vars(self.batch), "targets": {}})
        with torch.inference_mode(), self.precision.autocast():
            self.model(batch)

    def train(self) -> None:
        self.loss().backward()
        self.update()

    def loss(self) -> torch.Tensor:
        self.model.train()
        with self.precision.autocast():
            return self.model(self.batch).loss

    def update(self) -> None:
        if self.plain:
            plain_clip(self.model, CLIP)
            self.optimizer.step()
        else:
            self.optimizer.step(grad_scale=measure_clipping(self.model.parameters(), CLIP).divisor)
        self.optimizer.zero_grad()


def build_adamw(model: nn.Module, kind: type[torch.optim.Optimizer] = AdamW) -> Any:
    """An optimizer of what trains, whose numbers are those of fine-tuning."""
    return kind([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=1e-4)  # type: ignore[call-arg]


class Family:
    """The candidates that share a process, so that settings of one (its heap) do not help another.

    name: "plain", "ours" or a peer. The process builds its models and then does what it is asked, one call at a time.
    """

    def __init__(self, name: str, workload: str, samples: int | None, precisions: Sequence[str], device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        arguments = (other, name, workload, samples, tuple(precisions), device, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        self.candidates: list[str] = self._pipe.recv()

    def call(self, verb: str, candidate: str = "", kind: str = "train") -> Any:
        """Raises RuntimeError when the process is gone, which is most often for want of memory."""
        try:
            self._pipe.send((verb, candidate, kind))
            return self._pipe.recv()
        except (BrokenPipeError, EOFError) as error:
            raise RuntimeError(f"the process of {', '.join(self.candidates)} ended: out of memory?") from error

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


def _serve(
    pipe: Connection,
    family: str,
    workload: str,
    samples: int | None,
    precisions: Sequence[str],
    device_name: str,
    threads: int,
) -> None:
    """The process of a Family."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    work, device = WORKLOADS[workload], torch.device(device_name)
    cfg = load_config(work.task, work.cfg, (*NO_WEIGHTS, *(PLAIN_MODEL if family == "plain" else ())))
    torch.manual_seed(0)
    made_up = load_task(work.task).made_up
    batch = made_up_batch(made_up, cfg, samples or work.samples, work.words, work.boxes, equal=work.shared)
    if work.shared:
        batch = of_one_image(batch, own=family == "plain")
    batch = batch.to(device)
    steps: dict[str, Step | PeerStep]
    if family == "ours":
        keep_freed_memory(device)  # as a run of ours does
    if family in ("plain", "ours"):
        model = load_task(work.task).build_model(cfg).to(device)
        if family == "plain":
            plain = build_adamw(model, PlainAdamW)
            steps = {PLAIN: Step(model, batch, Precision("fp32", device), plain)}
        else:
            optimizer = build_adamw(model)
            steps = {f"ours {p}": Step(model, batch, Precision(p, device), optimizer) for p in precisions}
    else:
        peer = build_peer(family, cfg).to(device)
        theirs = build_adamw(peer, torch.optim.AdamW)
        steps = {f"{family} {p}": PeerStep(peer, batch, Precision(p, device), theirs) for p in precisions}
    pipe.send([*steps])
    while (message := pipe.recv()) is not None:
        verb, candidate, kind = message
        if verb == "run":
            getattr(steps[candidate], kind)()
            synchronise(device)
            pipe.send(None)
        elif verb == "memory":
            with Memory(device) as memory:
                steps[candidate].train()
            pipe.send(memory.peak)
        elif verb == "split":
            step = steps[candidate]
            assert isinstance(step, Step), "transformers' models have other parts"
            pipe.send(split(step, device))
        else:
            pipe.send(_flops(model, batch, cfg, device) | {"batch": len(batch)})


def measure(
    name: str, rounds: int, device: torch.device, precisions: Sequence[str], samples: int | None
) -> dict[str, Any]:
    """Figures of one workload, JSON-able: seconds of each round, FLOPs, memory, and MFU of ours.

    The candidates take turns, round after round; one round before them is not counted.
    """
    names = ("plain", "ours", *WORKLOADS[name].peers)
    families = [Family(family, name, samples, precisions, str(device)) for family in names]
    figures: dict[str, Any] = {"kinds": {}}
    for kind in WORKLOADS[name].kinds:
        candidates = {c: partial(f.call, "run", c, kind) for f in families for c in f.candidates}
        seconds = interleaved(candidates, rounds, device)
        figures["kinds"][kind] = {"seconds": seconds, "median": medians(seconds)}
    training = "train" in WORKLOADS[name].kinds
    figures["memory"] = {c: f.call("memory", c) for f in families for c in f.candidates if training}
    figures["split"] = {c: families[1].call("split", c) for c in families[1].candidates if training}
    figures |= families[1].call("flops")
    for family in families:
        family.close()
    figures["mfu"] = {
        f"ours {p}": figures["train"][TOTAL]
        / figures["kinds"]["train"]["median"][f"ours {p}"]
        / matmul_peak(Precision(p, device).dtype, device)
        for p in precisions
        if training
    }
    return figures


def of_one_image(batch: Batch, own: bool) -> Batch:
    """The batch with the image and boxes of its first sample for all. own: each has a copy of the image."""
    boxes = {
        name: value for name in ("boxes", "box_masks", "box_classes") if (value := getattr(batch, name)) is not None
    }
    fields: dict[str, Any] = {name: value[:1].expand_as(value).contiguous() for name, value in boxes.items()}
    assert batch.image is not None
    if own:
        fields["image"] = batch.image[:1].expand_as(batch.image).contiguous()
    else:
        fields |= {"image": batch.image[:1], "image_row": torch.zeros(len(batch), dtype=torch.int64)}
    return replace(batch, **fields)


def split(step: Step, device: torch.device) -> dict[str, float]:
    """Seconds of one training step by what takes them: parts of the model, forward and backward, what lies between
    them, and clipping with the optimizer.

    The backward of a part goes from the gradient of its output to that of its input, or where it has none, to the end.
    """
    seconds: dict[str, float] = dict.fromkeys((*PARTS, OTHER), 0.0)
    started: dict[str, float] = {}

    def now() -> float:
        synchronise(device)
        return time.perf_counter()

    def begin(part: str) -> None:
        started[part] = now()

    def end(part: str) -> None:
        if part in started:
            seconds[part] += now() - started.pop(part)

    def enter(part: str, args: Any) -> None:
        for x in _differentiable(args)[:1]:
            x.register_hook(lambda _: end(part))
        begin(part)

    def leave(part: str, output: Any) -> None:
        end(part)
        for x in _differentiable(output)[-1:]:
            x.register_hook(lambda _: begin(part))

    handles = []
    modules = dict(step.model.named_modules())
    for part, names in modules_of_parts(step.model).items():
        for module in {id(modules[n]): modules[n] for n in names if n in modules}.values():
            handles.append(module.register_forward_pre_hook(lambda _, args, part=part: enter(part, args)))
            handles.append(module.register_forward_hook(lambda _, args, output, part=part: leave(part, output)))
    start = now()
    step.loss().backward()
    for part in [*started]:
        end(part)
    seconds[OTHER] = now() - start - sum(seconds.values())
    for handle in handles:
        handle.remove()
    start = now()
    step.update()
    return seconds | {"optimizer": now() - start}


def _differentiable(values: Any) -> list[torch.Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, torch.Tensor) and x.requires_grad]


def _flops(model: nn.Module, batch: Batch, cfg: Config, device: torch.device) -> dict[str, Any]:
    """By part of the model; what our model computes, which is what the figures of MFU count."""
    precision = Precision("fp32", device)
    forward = inference_step(model, batch, precision)[0].flops
    return {"forward": forward, "train": training_step(model, batch, cfg, precision)[0].flops}


def split_rows(name: str, figures: dict[str, Any]) -> list[list[str]]:
    """Table rows: the part of each kind of work in a training step."""
    return [
        [name, candidate, *(f"{seconds / sum(parts.values()):.0%}" for seconds in parts.values())]
        for candidate, parts in figures["split"].items()
    ]


def rows(name: str, figures: dict[str, Any]) -> list[list[str]]:
    """Table rows: what, seconds, samples a second, ratio to plain, memory, MFU."""
    out = []
    for kind, found in figures["kinds"].items():
        base = found["median"][PLAIN]
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


SPLIT_HEADER = ["workload", "what", *PARTS, OTHER, "optimizer"]
HEADER = ["workload", "step", "what", "seconds", "samples/s", "x plain", "GiB", "MFU"]

"""Report about the cost of models: `python -m common.model_report --cfg FILE ...`.

Builds the model of each config with random weights, runs one inference and one training step on a made-up batch, and
prints parameters, FLOPs, losses and times. A multiply-add counts as 2 FLOPs. Matrix products, convolutions and
attention are counted. RoIAlign, normalisation, activations, look-ups and the optimizer are not.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import resource
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from common.cli import guarded
from common.config import Config, load_config
from common.config.table import is_task
from common.data.sample import Batch, ModelOutput
from common.data.synthetic import made_up_batch
from common.errors import ConfigError
from common.files.atomic import write_text
from common.nn.cpu import linear, resnet
from common.nn.vl_bert import VisualLinguisticBert
from common.precision import Precision, resolve_precision
from common.task import Task, load_task
from common.train.optim import build_optimizer, clip_grad_norm
from common.train.plan import RunPlan
from common.weights.restore import build_precision, pick_device

log = logging.getLogger(__name__)

PARTS = ("backbone", "RoI head", "encoder", "heads")  # "other" has the rest, above all the projections of regions
OTHER, TOTAL = "other", "total"
# The counter lacks the fused operations of CPUs. Attention takes query, key and value; its backward takes a gradient
# first.
CPU_FORMULAS = {
    **linear.flop_formulas(),
    **resnet.flop_formulas(),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **options: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *shapes, **options: sdpa_backward_flop_count(*shapes[:4])
    ),
}


def modules_of_parts(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Names of the modules that make up each of PARTS, as in `model.named_modules()`. A model may lack some of them."""
    language = next((name for name, m in model.named_modules() if isinstance(m, VisualLinguisticBert)), "vlbert")
    heads = tuple(f"{language}.{head}" for head in ("pooler", "relationsip_head", "mlm_head", "mvrc_head"))
    regions = "image_feature_extractor"
    return {
        "backbone": (f"{regions}.backbone",),
        # The RoI head is registered under two names, and the counter knows it by one of them.
        "RoI head": (f"{regions}.roi_head_feature_extractor", f"{regions}.head.0"),
        "encoder": (f"{language}.encoder",),
        "heads": ("final_mlp", "cnn_loss_reg", f"{regions}.regularizing_predictor", *heads),
    }


@dataclass(frozen=True)
class Step:
    """The cost of one step.

    flops: of the whole batch, by part of the model, with OTHER and TOTAL. seconds: its time while FLOPs are counted.
    """

    flops: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class ModelReport:
    """The measurements of one config. `asdict` of it is JSON-able.

    name: <task>/<stem of the YAML>. configured: the precision of the config. samples, choices, tokens, boxes, image:
    sizes of the batch; choices is 1 without choices, image is height and width in pixels or None without pixels.
    entries: number of entries of the state dict. trained_tensors: number of parameter tensors that are trained. idle:
    the names of those with a gradient of zeros, and of those that the step did not change; with a visual scale of 0,
    the published start, no gradient reaches the image tower at first. problems: one line each, none for a sound model.
    """

    name: str
    device: str
    precision: str
    configured: str
    samples: int
    choices: int
    tokens: int
    boxes: int
    image: tuple[int, int] | None
    parameters: int
    trained: int
    entries: int
    inference: Step
    training: Step
    loss: float
    trained_tensors: int
    idle: list[str]
    problems: list[str]

    @property
    def sequence(self) -> int:
        """Positions of the sequence of the encoder: words, regions and END."""
        return self.tokens + self.boxes + 1


@dataclass(frozen=True)
class BatchSizes:
    """Sizes of a made-up batch: samples, and words and boxes of a sample, None for the usual numbers of the task."""

    samples: int = 1
    words: int | None = None
    boxes: int | None = None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m common.model_report", description="Parameters, FLOPs and one step of the models of configs."
    )
    parser.add_argument("--cfg", nargs="+", type=Path, required=True, metavar="FILE", help="YAML files")
    parser.add_argument("--task", help="task of the configs (default: the name of each one's folder)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="samples of the batch (default: 1)")
    parser.add_argument("--boxes", type=int, metavar="N", help="regions of a sample (default: usual for the task)")
    parser.add_argument("--words", type=int, metavar="N", help="word pieces without special tokens (default: likewise)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys")
    args = parser.parse_args(argv)
    configs = [(args.task or path.resolve().parent.name, path) for path in args.cfg]
    for task, path in configs:
        if not is_task(task):
            parser.error(f"{path}: there is no {task}/task.py; name the task of the config with --task")
    reports: list[ModelReport] = []
    sizes = BatchSizes(args.batch, args.words, args.boxes)
    status = guarded(report_all, configs, args.set, sizes, args.json, reports)
    return status or int(any(report.problems for report in reports))


def report_all(
    configs: Sequence[tuple[str, Path]],
    overrides: Sequence[str],
    sizes: BatchSizes,
    json_file: Path | None,
    reports: list[ModelReport],
) -> None:
    """Adds a report of each (task, file) to `reports`, prints their tables and writes them to `json_file`."""
    for task, path in configs:
        reports.append(report_config(task, path, overrides, sizes.samples, sizes.words, sizes.boxes))
        log.info("%s: done", reports[-1].name)
    print(render(reports))
    print(f"\nMost memory that the process held: {peak_memory() / 2**30:.1f} GiB")
    if json_file:
        write_text(json_file, json.dumps([asdict(report) for report in reports], indent=1) + "\n")


def peak_memory() -> int:
    """Returns the largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ---------------------------------------------------------------------------------------------- one config


def report_config(
    task_name: str,
    path: Path,
    overrides: Sequence[str] = (),
    samples: int = 1,
    words: int | None = None,
    boxes: int | None = None,
) -> ModelReport:
    """Builds the model of a config, runs both steps and frees the model.

    samples, words, boxes: sizes of `made_up_batch`. Raises ConfigError for a config or sizes that do not work.
    """
    task, cfg = load_task(task_name), load_config(task_name, path, overrides)
    torch.manual_seed(0)
    device = pick_device(cfg)
    try:
        batch = made_up_batch(task.made_up, cfg, samples, words, boxes).to(device)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    model = task.build_model(cfg).to(device)
    report = report_model(f"{task_name}/{path.stem}", model, batch, cfg, step_precision(task, cfg, device))
    del model
    gc.collect()  # a large model is gigabytes: the next one must not be built beside it
    return report


def report_model(name: str, model: nn.Module, batch: Batch, cfg: Config, precision: Precision) -> ModelReport:
    """Runs inference, then one training step at the full learning rate, which changes the model."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    parameters = list(model.parameters())
    inference, predictions = inference_step(model, batch, precision)
    before = checksums(model)
    training, losses = training_step(model, batch, cfg, precision)
    after = checksums(model)
    moved = {n for n in before if before[n] != after[n]}
    return ModelReport(
        name=name,
        device=precision.device.type,
        precision=precision.name,
        configured=resolve_precision(cfg),
        samples=len(batch),
        choices=batch.text_ids.shape[1] if batch.text_ids.dim() == 3 else 1,
        tokens=batch.text_ids.shape[-1],
        boxes=batch.boxes.shape[1],
        image=None if batch.image is None else (batch.image.shape[2], batch.image.shape[3]),
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in trained.values()),
        entries=len(model.state_dict()),
        inference=inference,
        training=training,
        loss=losses["loss"].item(),
        trained_tensors=len(trained),
        idle=[n for n, p in trained.items() if n not in moved or p.grad is None or not p.grad.any()],
        problems=find_problems(model, {**predictions, **losses}, moved),
    )


def step_precision(task: Task, cfg: Config, device: torch.device) -> Precision:
    """Returns the precision of the config; on a CPU bf16 for fp16, which is dozens of times slower than fp32 there."""
    if device.type == "cpu" and resolve_precision(cfg) == "fp16":
        return Precision("bf16", device)
    return build_precision(task, cfg, device)


# ---------------------------------------------------------------------------------------------- steps


def inference_step(model: nn.Module, batch: Batch, precision: Precision) -> tuple[Step, dict[str, Tensor]]:
    """Runs a forward of the batch without its targets. Returns its cost and its predictions."""
    model.eval()
    unlabelled = Batch(**{**vars(batch), "targets": {}})
    with frozen(model), Cost(precision.device) as cost, torch.inference_mode(), precision.autocast():
        predictions = model(unlabelled).predictions
    return cost.step(model), predictions


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Switches gradients of all parameters off. In inference the counter fails at views of trained parameters."""
    trained = [p for p in model.parameters() if p.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def training_step(model: nn.Module, batch: Batch, cfg: Config, precision: Precision) -> tuple[Step, dict[str, Tensor]]:
    """Runs forward, backward, clipping and optimizer step, as a run after its warm-up does. Gradients stay.

    Returns cost and losses, where "loss" is the one that was minimised. Raises ConfigError for a batch without targets.
    """
    model.train()
    base_lr = RunPlan.from_config(cfg, processes=1, batches_per_epoch=1).base_lr
    optimizer = build_optimizer(cfg.TRAIN, model.named_parameters(), base_lr)
    with Cost(precision.device) as cost:
        with precision.autocast():
            output: ModelOutput = model(batch)
        if output.loss is None:
            raise ConfigError("the batch has no targets, so the model returned no loss: Task.made_up must make targets")
        precision.backward(output.loss)
        precision.unscale(optimizer)
        if cfg.TRAIN.CLIP_GRAD_NORM > 0:
            clip_grad_norm(model.parameters(), cfg.TRAIN.CLIP_GRAD_NORM)
        precision.step(optimizer)
    return cost.step(model), {name: value.detach() for name, value in {"loss": output.loss, **output.losses}.items()}


class Cost:
    """Context manager that counts FLOPs by module, and seconds."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._counter = FlopCounterMode(display=False, custom_mapping=CPU_FORMULAS)

    def __enter__(self) -> Cost:
        self._wait()
        self._start = time.perf_counter()
        self._counter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._counter.__exit__(*error)
        self._wait()
        self._seconds = time.perf_counter() - self._start

    def step(self, model: nn.Module) -> Step:
        """Returns the counts, by the parts of `model`."""
        counts = {name: sum(by_kind.values()) for name, by_kind in self._counter.get_flop_counts().items()}
        root, parts = type(model).__name__, modules_of_parts(model)
        flops = {part: sum(counts.get(f"{root}.{name}", 0) for name in names) for part, names in parts.items()}
        total = self._counter.get_total_flops()
        return Step({**flops, OTHER: total - sum(flops.values()), TOTAL: total}, self._seconds)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


# ---------------------------------------------------------------------------------------------- soundness


def checksums(model: nn.Module) -> dict[str, int]:
    """Returns the CRC of each parameter, which shows a change without a copy of the model."""
    return {name: zlib.crc32(p.detach().cpu().numpy().tobytes()) for name, p in model.named_parameters()}


def find_problems(model: nn.Module, values: dict[str, Tensor], moved: set[str]) -> list[str]:
    """Returns the faults after a training step. values: predictions and losses. moved: parameters that it changed."""
    problems = [f"{name} is not finite" for name, value in values.items() if not value.isfinite().all()]
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            problems += [f"{name} is frozen and changed"] if name in moved else []
        elif parameter.grad is None:
            problems.append(f"{name} has no gradient")
        elif not parameter.grad.isfinite().all():
            problems.append(f"the gradient of {name} is not finite")
    return problems


# ---------------------------------------------------------------------------------------------- tables


def render(reports: Sequence[ModelReport]) -> str:
    """Returns Markdown tables of sizes, of FLOPs and of the results of the steps, then the problems."""
    sizes = [
        [
            r.name,
            f"{r.parameters:,}",
            f"{r.trained:,}",
            str(r.entries),
            f"{r.samples} x {r.choices} choices" if r.choices > 1 else str(r.samples),
            str(r.tokens),
            str(r.boxes),
            str(r.sequence),
            f"{r.image[0]} x {r.image[1]}" if r.image else "features",
        ]
        for r in reports
    ]
    flops = [
        [
            r.name,
            giga(r.training.flops[TOTAL] / r.samples),
            *(giga(r.inference.flops[part] / r.samples) for part in (TOTAL, *PARTS, OTHER)),
        ]
        for r in reports
    ]
    steps = [
        [
            r.name,
            r.device,
            r.precision if r.precision == r.configured else f"{r.precision} for {r.configured}",
            f"{r.loss:.4g}",
            str(len(r.problems)),
            f"{r.trained_tensors - len(r.idle)} of {r.trained_tensors}",
            f"{r.training.seconds:.2f}",
            f"{r.inference.seconds:.2f}",
        ]
        for r in reports
    ]
    parts = [*PARTS, OTHER]
    blocks = [
        table(["config", "parameters", "trained", "entries", "batch", "tokens", "boxes", "sequence", "image"], sizes),
        "GFLOPs of a sample, a multiply-add counting as 2; the parts are those of inference:",
        table(["config", "training", "inference", *parts], flops),
        table(["config", "device", "precision", "loss", "problems", "learning", "training s", "inference s"], steps),
        *(f"PROBLEM {report.name}: {problem}" for report in reports for problem in report.problems),
    ]
    return "\n\n".join(blocks)


def giga(count: float) -> str:
    """Returns "12.3" for 12.3e9; small figures keep three digits."""
    value = count / 1e9
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table with aligned columns; all but the first are aligned to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join([first, *others])} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *map(line, rows)])


if __name__ == "__main__":
    sys.exit(main())

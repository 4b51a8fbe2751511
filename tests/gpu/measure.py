"""What a FakeGpu observes of each form: `python -m tests.gpu.measure OUT.json FORM ...`, with the shim.

Writes {form: {case: observations}}. A case that raised has {"error": traceback}.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.gpu import steps  # isort: skip # first, because it changes torch before the product is imported
from common.config import Config
from common.data.build import build_transform
from common.data.sample import Batch
from common.data.synthetic import made_up_batch
from common.metrics import MetricGroup
from common.precision import Precision
from common.predict.region_features import RegionFeatureExtractor
from common.task import Task, load_task
from common.train import memory
from common.train.evaluator import evaluate
from common.weights import checkpoint
from tests.gpu.forms import FORMS, PRECISIONS, SIZES, Form
from tests.gpu.lookalike import CudaLike, FakeGpu, Kernel, Wait

ACCUMULATE = 2
# Elements. Larger tensors get no values where only waits and kernels count, which saves their arithmetic.
NO_VALUES = 100
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
Found = dict[str, Any]


class Case:
    """A form with its task, config and batch."""

    def __init__(self, form: Form) -> None:
        self.task: Task = load_task(form.task)
        self.cfg: Config = steps.read_config(form.task, form.cfg, form.settings)
        self.batch: Batch = made_up_batch(self.task.made_up, self.cfg, **SIZES)

    def model(self) -> torch.nn.Module:
        torch.manual_seed(0)
        return self.task.build_model(self.cfg)


def training(case: Case, precision: str) -> Found:
    """Batch 2 adds to the gradients, batch 3 updates; the batches before make the state of the optimizer."""
    with steps.fake_gpu(NO_VALUES) as gpu:
        batches = steps.Batches(case.batch, 4, gpu, record=range(2, 4))
        steps.fit(steps.build_trainer(case.task, case.cfg, precision, batches, ACCUMULATE))
        (waits, kernels), (more_waits, more_kernels) = batches.records(2), batches.records(3)
    return {
        "batch": summary(waits, kernels, gpu),
        "update": {
            "waits": dict(counted(more_waits) - counted(waits)),
            "kernels": launches(more_kernels) - launches(kernels),
        },
    }


def evaluation(case: Case) -> Found:
    """The second of two batches, in bf16."""
    with steps.fake_gpu(NO_VALUES) as gpu:
        batches = steps.Batches(case.batch, 2, gpu, record=range(1, 2))
        model, metrics = case.model().to(steps.DEVICE), case.task.build_metrics(case.cfg, False)
        with steps.suppress(steps.StopHere):
            evaluate(model, batches, steps.DEVICE, Precision("bf16", steps.DEVICE), metrics)  # type: ignore[arg-type]
        return summary(*batches.records(1), gpu) | {"metrics": metric_waits(metrics, gpu)}


def metric_waits(metrics: MetricGroup, gpu: FakeGpu) -> int:
    """Waits of reading all metrics."""
    before, gpu.recording = len(gpu.waits), True
    metrics.compute()
    gpu.recording = False
    return len(gpu.waits) - before


def same_numbers(case: Case) -> Found:
    """The largest differences of predictions, loss and gradients between the paths of a GPU and of a CPU in fp32."""
    model = case.model().eval()
    on_cpu = outputs(model, case.batch)
    with steps.fake_gpu():
        on_gpu = {k: v.held for k, v in outputs(case.model().eval().to(steps.DEVICE), case.batch.to("cuda")).items()}
    assert on_cpu.keys() == on_gpu.keys()
    return {k: float((on_gpu[k].double() - on_cpu[k].double()).abs().max()) / scale(on_cpu[k]) for k in on_cpu}


def scale(x: torch.Tensor) -> float:
    return max(1e-3, float(x.double()[x > -9999].abs().max())) if (x > -9999).any() else 1.0


def outputs(model: torch.nn.Module, batch: Batch) -> dict[str, Any]:
    """Predictions, the loss and the gradients by name."""
    output = model(batch)
    output.loss.backward()
    found = {k: v.detach() for k, v in output.predictions.items()} | {"loss": output.loss.detach()}
    return found | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def resume(case: Case) -> Found:
    """A run of two updates from a file of a run of one. CPUs compute convolutions in fp16 too slowly."""
    precision = "fp16" if case.cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED else "fp32"
    folder = Path(tempfile.mkdtemp(prefix="fake-gpu-"))
    with steps.fake_gpu() as gpu:
        trainer = steps.build_trainer(case.task, case.cfg, precision, steps.Batches(case.batch, 1, gpu, range(0)))
        steps.fit(trainer)
        trainer.save(folder / "a.model")
        again = steps.build_trainer(case.task, case.cfg, precision, steps.Batches(case.batch, 1, gpu, range(0)))
        again.load_state_dict(checkpoint.load_file(folder / "a.model"), "a.model")
        loaded = same_parameters(trainer.model, again.model)
        again.position.epoch, again.position.batch = 0, 0  # the one batch again
        steps.fit(again)
        state = [x for s in again.optimizer.state.values() for x in s.values() if isinstance(x, torch.Tensor)]
        return {
            "loaded": loaded,
            "trained": not same_parameters(trainer.model, again.model),
            "updates": again.position.updates,
            "state": sorted({str(x.device) for x in state if x.dim()}),
        }


def same_parameters(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a.held, b.held) for a, b in pairs if isinstance(a, CudaLike) and isinstance(b, CudaLike))


def forecast(case: Case) -> Found:
    """The log of the forecast of memory."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    memory.log.addHandler(handler)
    memory.log.setLevel(logging.INFO)
    try:
        with steps.fake_gpu(NO_VALUES):
            model = case.model().to(steps.DEVICE)
            memory.log_forecast(case.task.made_up, case.cfg, model, Precision("bf16", steps.DEVICE))
    finally:
        memory.log.removeHandler(handler)
    return {"log": lines}


def region_features(case: Case) -> Found:
    """The largest difference between region features of both paths, and the device of the features."""
    from PIL import Image

    images = [Image.new("RGB", (60, 40), color) for color in ("red", "green")]
    boxes = [torch.tensor([[0.0, 0.0, 30.0, 30.0]]), torch.tensor([[5.0, 5.0, 50.0, 39.0], [0.0, 0.0, 10.0, 10.0]])]

    def compute(device: Any) -> list[torch.Tensor]:
        cnn: Any = case.model().image_feature_extractor
        return RegionFeatureExtractor(cnn, build_transform(case.cfg), device)(images, boxes)

    on_cpu = compute("cpu")
    with steps.fake_gpu():
        on_gpu = compute(steps.DEVICE)
    return {
        "difference": max(float((a - b).abs().max()) for a, b in zip(on_cpu, on_gpu, strict=True)),
        "devices": sorted({str(x.device) for x in on_gpu}),
    }


# ---------------------------------------------------------------------------------------------- summaries


def counted(waits: Sequence[Wait]) -> Counter[str]:
    return Counter(f"{wait.place}: {wait.kind}" for wait in waits)


def launches(kernels: Sequence[Kernel]) -> int:
    return sum(kernel.launches for kernel in kernels)


def summary(waits: Sequence[Wait], kernels: Sequence[Kernel], gpu: FakeGpu) -> Found:
    """waits by place, launches, names of attention kernels, products by dtype, and operators that ran on the CPU."""
    products = Counter(str(k.dtype).removeprefix("torch.") for k in kernels if k.name in PRODUCTS)
    return {
        "waits": dict(counted(waits)),
        "kernels": launches(kernels),
        "attention": dict(Counter(k.name for k in kernels if "attention" in k.name)),
        "products": dict(products),
        "on the CPU": sorted(set(gpu.on_cpu)),
    }


CASES: dict[str, Callable[[Case], Found]] = {
    **{f"training {p}": (lambda case, p=p: training(case, p)) for p in PRECISIONS},
    "evaluation": evaluation,
    "forecast": forecast,
}
OF_VALUES = {"same numbers": same_numbers, "resume": resume}
OF_PIXELS = {"region features": region_features}


def measure(name: str) -> dict[str, Found]:
    """All cases of a form."""
    form = FORMS[name]
    cases = CASES | (OF_VALUES if form.values else {})
    cases |= OF_PIXELS if form.values and "pixels" in name else {}
    found: dict[str, Found] = {}
    for title, run in cases.items():
        try:
            found[title] = run(Case(form))
        except Exception:  # the result of this case
            found[title] = {"error": traceback.format_exc(limit=-6)}
    return found


def main(argv: Sequence[str]) -> int:
    logging.getLogger("common").setLevel(logging.ERROR)
    Path(argv[0]).write_text(json.dumps({name: measure(name) for name in argv[1:]}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

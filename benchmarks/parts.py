"""The two heavy parts alone: the encoder, and the image tower beside that of torchvision."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision.models import resnet101
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms.functional import normalize

from benchmarks.measure import interleaved, matmul_peak, medians
from common.nn.cpu.bert import FastEncoder
from common.nn.cpu.memory import keep_freed_memory
from common.nn.cpu.resnet import FastBottleneck, FastResNetC4
from common.precision import Precision

SAMPLES, LENGTH = 32, 128
IMAGE = (600, 1000)


def measure_encoder(rounds: int, device: torch.device, precisions: list[str]) -> list[list[str]]:
    """Rows: BERT base on 32 rows of 128 real positions, with what part of the matrix product's rate it reaches."""
    keep_freed_memory(device)
    model = FastEncoder(12, 768, 12, 3072).to(device)
    x = torch.randn(SAMPLES, LENGTH, 768, device=device)
    mask = torch.ones(SAMPLES, LENGTH, dtype=torch.bool, device=device)
    count = SAMPLES * LENGTH
    flops = 12 * (2 * count * (4 * 768**2 + 2 * 768 * 3072) + 4 * count * LENGTH * 768)
    rows = []
    for name in precisions:
        precision = Precision(name, device)

        def forward(precision: Precision = precision) -> None:
            model.eval()
            with torch.inference_mode(), precision.autocast():
                model(x, mask)

        def train(precision: Precision = precision) -> None:
            model.train()
            with precision.autocast():
                out = model(x, mask).layers[-1]
            out.float().square().mean().backward()
            model.zero_grad()

        # One after the other: a forward of an evaluation follows forwards, whose casts of the weights it uses.
        runs = {"forward": forward, "train": train}
        found = {kind: medians(interleaved({kind: run}, rounds, device))[kind] for kind, run in runs.items()}
        peak = matmul_peak(precision.dtype, device)
        for kind, seconds in found.items():
            work = flops * (3 if kind == "train" else 1)
            rows.append(["encoder", kind, name, f"{seconds:.3f}", f"{work / seconds / peak:.0%}"])
    return rows


def measure_tower(rounds: int, device: torch.device, precisions: list[str]) -> list[list[str]]:
    """Rows: ResNet-101 to layer3 on one image, ours and torchvision's with its frozen batch norm."""
    keep_freed_memory(device)
    image = torch.rand(1, 3, *IMAGE, device=device)
    towers: dict[str, nn.Module] = {
        "torchvision": _Torchvision(),
        "ours": FastResNetC4(101, stride_in_1x1=False, block=FastBottleneck),
    }
    towers["ours"].load_state_dict(towers["torchvision"].body.state_dict(), strict=False)  # type: ignore[union-attr]
    for tower in towers.values():
        tower.to(device).train()
    for module in (towers["torchvision"].body, towers["ours"]):
        for stage in (module.conv1, module.layer1):  # type: ignore[union-attr]
            stage.requires_grad_(False)
    image = normalize(image, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    candidates: dict[str, Any] = {}
    for kind in ("forward", "train"):
        for name in precisions:
            for which, tower in towers.items():
                candidates[f"{kind} {which} {name}"] = _run(tower, image, Precision(name, device), kind == "train")
    found = medians(interleaved(candidates, rounds, device))
    rows = []
    for label, seconds in found.items():
        kind, which, name = label.split()
        base = found[f"{kind} torchvision {name}"]
        rows.append(["tower", kind, f"{which} {name}", f"{seconds:.3f}", f"{base / seconds:.2f}"])
    return rows


def _run(tower: nn.Module, image: torch.Tensor, precision: Precision, train: bool) -> Any:
    def forward() -> None:
        with torch.inference_mode(), precision.autocast():
            tower(image)

    def step() -> None:
        with precision.autocast():
            out = tower(image)
        out.float().square().mean().backward()
        tower.zero_grad()

    return step if train else forward


class _Torchvision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = resnet101(weights=None, norm_layer=FrozenBatchNorm2d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b = self.body
        x = b.maxpool(b.relu(b.bn1(b.conv1(x))))
        return b.layer3(b.layer2(b.layer1(x)))

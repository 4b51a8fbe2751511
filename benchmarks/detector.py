"""The Visual Genome detector on one image and on many, its stages, and the NMS of its classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops import box_iou, nms, roi_pool
from torchvision.transforms.functional import to_tensor

from benchmarks.measure import interleaved, medians, synchronise
from common.boxes import iou
from common.detect.detector import Detector
from common.detect.image import network_input
from common.detect.network import ROI_SIZE, VisualGenomeDetector
from common.detect.proposals import STRIDE
from common.detect.selection import class_confidence
from common.nn.cpu.memory import keep_freed_memory
from common.weights.build import FAST

SIZE = (1000, 600)  # width, height: the scale is 1
PROPOSALS = 300
HEADER = ["what", "images", "seconds an image", "x plain fp32"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure_detector(rounds: int, device: torch.device, precisions: list[str], images: int = 1) -> list[list[str]]:
    """Rows: seconds of an image for the plain network, ours, and torchvision's, then the stages of ours."""
    keep_freed_memory(device)
    photos = [photo(seed) for seed in range(images)]
    plain = network()
    fast = VisualGenomeDetector(num_proposals=PROPOSALS, parts=FAST)
    fast.load_state_dict(plain.state_dict())
    runs: dict[str, Callable[[], object]] = {"plain fp32": run(Detector(plain, device=device), photos)}
    for name in precisions:
        runs[f"ours {name}"] = run(Detector(fast, device=device, precision=DTYPES[name]), photos)
    runs["torchvision fasterrcnn_resnet50_fpn fp32"] = torchvision_run(photos, device)
    found = medians(interleaved(runs, rounds, device))
    base = found["plain fp32"]
    rows = [[name, str(images), f"{s / images:.3f}", f"{base / s:.2f}"] for name, s in found.items()]
    for name in precisions:
        rows += [[f"  {part} {name}", "1", f"{s:.4f}", ""] for part, s in stages(fast, DTYPES[name], device).items()]
    return rows + [[name, "1", f"{s:.4f}", ""] for name, s in class_nms(rounds).items()]


@torch.no_grad()
def network() -> VisualGenomeDetector:
    """Random weights under which the activations keep their size and the proposals are anchors."""
    found = VisualGenomeDetector(num_proposals=PROPOSALS)
    for name, parameter in found.named_parameters():
        if name.endswith("bn3.weight"):
            parameter.fill_(0.2)
    found.rpn.deltas.weight.zero_()
    return found


def photo(seed: int) -> Image.Image:
    """Coloured spots, so that proposals differ in their scores."""
    spots = np.random.default_rng(seed).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize(SIZE, Image.Resampling.BICUBIC)


def run(detector: Detector, photos: list[Image.Image]) -> Callable[[], object]:
    return lambda: detector(photos)


def torchvision_run(photos: list[Image.Image], device: torch.device) -> Callable[[], object]:
    """torchvision's detector with as many proposals, one image after another."""
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, rpn_post_nms_top_n_test=PROPOSALS)
    model.to(device).eval()

    @torch.inference_mode()
    def detect() -> None:
        for image in photos:
            model([to_tensor(image).to(device)])

    return detect


@torch.inference_mode()
def stages(model: VisualGenomeDetector, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Seconds of each stage of one image, after a first pass that warms up."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        synchronise(device)
        start = time.perf_counter()
        yield
        synchronise(device)
        seconds[name] = time.perf_counter() - start

    image = photo(0)
    for _ in range(2):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            with timed("input"):
                pixels, scale = network_input(image)
            with timed("trunk"):
                maps = model.backbone(pixels.to(device))
            with timed("RPN and NMS"):
                boxes = model.propose(maps, SIZE, scale).boxes
            with timed("RoI pooling"):
                roi_pool(maps.float(), [boxes], ROI_SIZE, 1 / STRIDE)
            with timed("RoI pooling and head"):
                features = model.pool(maps, boxes)
        with timed("classes and attributes"):
            scores = model.classify(features)
        with timed("selection"):
            class_confidence(iou(boxes / scale, boxes / scale), scores.classes)
    return seconds


def class_nms(rounds: int) -> dict[str, float]:
    """Seconds of the NMS of 1,600 classes on 300 boxes on the CPU."""
    random = torch.Generator().manual_seed(0)
    low = torch.rand(PROPOSALS, 2, generator=random) * 500
    boxes = torch.cat([low, low + torch.rand(PROPOSALS, 2, generator=random) * 400], dim=1)
    scores = torch.randn(PROPOSALS, 1601, generator=random).softmax(dim=1)
    runs: dict[str, Callable[[], Any]] = {
        "class-wise NMS, all classes at once": lambda: class_confidence(box_iou(boxes, boxes), scores),
        "class-wise NMS, a loop over classes": lambda: class_by_class(boxes, scores),
    }
    return medians(interleaved(runs, max(rounds, 3), torch.device("cpu")))


def class_by_class(boxes: Tensor, scores: Tensor) -> Tensor:
    confidence = scores.new_zeros(len(scores))
    for label in range(1, scores.shape[1]):
        kept = nms(boxes, scores[:, label], 0.3)
        confidence[kept] = torch.maximum(confidence[kept], scores[kept, label])
    return confidence

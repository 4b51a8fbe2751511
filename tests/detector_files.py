"""State dicts of the Visual Genome detector in the forms that its weight files have, for tests."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from common.detect.weights import DetectorSizes, DetectorWeights, detector_table

Blobs = dict[str, list[np.ndarray]]


def as_caffe(state: dict[str, Tensor], sizes: DetectorSizes, lettered: bool = False, f: float = 4.0) -> Blobs:
    """The blobs of a Caffe model: statistics of batch norms times f."""
    flat = {e.caffe: state[e.key].numpy() for e in detector_table(sizes, lettered)}
    blobs: Blobs = {}
    for name in sorted(flat):
        blobs.setdefault(name[:-2], []).append(flat[name])
    for layer in [layer for layer in blobs if layer.startswith("bn")]:
        blobs[layer] = [*(x * np.float32(f) for x in blobs[layer]), np.array([f], np.float32)]
    return blobs


def as_port(state: dict[str, Tensor], sizes: DetectorSizes) -> dict[str, Tensor]:
    return {e.port: state[e.key] for e in detector_table(sizes)}


def assert_equal(weights: DetectorWeights, state: dict[str, Tensor]) -> None:
    counters = {key for key in weights.state if key.endswith("num_batches_tracked")}
    assert weights.state.keys() - counters == state.keys()
    assert len(counters) == sum(key.endswith("running_mean") for key in state)
    assert all(torch.equal(weights.state[key], state[key]) for key in state)

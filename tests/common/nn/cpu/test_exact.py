"""The rule of the fast path."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from common.nn.cpu.exact import is_exact
from common.nn.cpu.linear import is_fusable
from tests.test_imports import FILES, imported, module_name


class Wrapped(torch.Tensor):
    """Stands for the weights of torchao and of DTensor."""


def subclass(layer: nn.Linear) -> nn.Linear:
    layer.__class__ = type("Linear", (nn.Linear,), {})
    return layer


def with_forward(layer: nn.Linear) -> nn.Linear:
    layer.forward = lambda x: x
    return layer


def with_wrapped_weight(layer: nn.Linear) -> nn.Linear:
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Wrapped))
    return layer


def with_computed_weight(layer: nn.Linear) -> nn.Linear:
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight
    return layer


def with_hook(layer: nn.Linear, kind: str) -> nn.Linear:
    getattr(layer, f"register_{kind}_hook")(lambda *args: None)
    return layer


CHANGES = {
    "subclass": subclass,
    "forward": with_forward,
    "wrapped weight": with_wrapped_weight,
    "computed weight": with_computed_weight,
    "weight norm": parametrizations.weight_norm,
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    **{
        kind: lambda layer, kind=kind: with_hook(layer, kind)
        for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre")
    },
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_linear_layer_is_not_fused(change):
    assert is_fusable(nn.Linear(4, 4)) and not is_fusable(change(nn.Linear(4, 4)))


def test_a_linear_layer_without_bias_is_exact_but_not_fused():
    layer = nn.Linear(4, 4, bias=False)
    assert is_exact(layer, nn.Linear) and not is_fusable(layer)


def test_hooks_for_all_modules_do_not_count():
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    assert is_fusable(nn.Linear(4, 4))
    handle.remove()


def test_only_the_edges_know_the_fast_path():
    """Without common/nn/cpu, builders, counters of FLOPs and the start of a run change, and no module of the model."""
    users = {
        module_name(path)
        for path in FILES
        if any(name.startswith("common.nn.cpu") for name in imported(path)) and "tests" not in path.parts
    }
    users = {name for name in users if not name.startswith(("common.nn.cpu", "benchmarks."))}
    assert users == {
        "common.weights.build",
        "common.weights.restore",
        "common.inspect.model_report",
        "common.train.run",
        "data.regions.extract",
    }

"""What the adapters of models share: running a module the way the reference did, and comparing its gradients."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from common.config import load_config, replace
from tests.golden.core import REPOSITORY, Case, Report, Skip

# Reference class -> module and builder of ours; the classes of a folder without one are skipped by name.
BUILDERS = {
    "ResNetVLBERT": "build_model",
    "ResNetVLBERTForPretraining": "build_single",
    "ResNetVLBERTForPretrainingMultitask": "build_multitask",
    "ResNetVLBERTForAttentionVis": "build_attention_vis",
}


FULL_SIZE = 256  # hidden sizes from here on have the tolerance of models of the shipped size


def tolerance(cfg: Any, cnn: bool = False) -> float:
    """Absolute tolerance of a forward: tiny models, tiny models behind a CNN, models of the shipped size."""
    if cfg.NETWORK.VLBERT.hidden_size >= FULL_SIZE:
        return 1e-4
    return 2e-5 if cnn else 1e-5


def case_config(case: Case) -> Any:
    """The config of a case: task defaults, then its YAML, then its overrides, with the plain model.

    The reference has numbers at padded positions too, which the fast path does not compute.
    """
    path = REPOSITORY / case.json["cfg"] if case.json.get("cfg") else None
    return replace(load_config(case.json["task_defaults"], path, case.overrides), {"NETWORK.FAST_PATH": False})


def build_task_model(name: str, task: str, cfg: Any) -> nn.Module:
    """Our module for a reference class of a task. Raises Skip for a task whose module does not exist yet."""
    try:
        module = importlib.import_module(f"{task}.module")
    except ModuleNotFoundError:
        raise Skip(f"{task} {name}") from None
    return getattr(module, BUILDERS[name])(cfg)


def without_dropout(model: nn.Module) -> None:
    for m in model.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0


def check_gradients(case: Case, report: Report, model: nn.Module) -> None:
    """Norms within 1e-3 of the stored ones (CNN parameters 3e-3), floored by the total; same parameters without any."""
    wanted: Mapping[str, float] = case.json["grad_norm"]
    total = sum(v * v for v in wanted.values()) ** 0.5
    grads = {name: p.grad for name, p in model.named_parameters()}
    report.equal(
        "parameters without gradient", sorted(n for n, g in grads.items() if g is None), sorted(case.json["no_grad"])
    )
    for name, want in wanted.items():
        if name.endswith("attention.self.key.bias"):  # mathematically zero
            continue
        grad = grads.get(name)
        if grad is None:
            report.fail(f"grad {name}", "no gradient")
            continue
        is_cnn = any(part in name for part in ("backbone.", "roi_head_feature_extractor."))
        report.close(f"grad {name}", grad.double().norm(), want, 1e-5 * total, 3e-3 if is_cnn else 1e-3)

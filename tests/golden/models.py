"""The parts that adapters of models share: building a module, its mode of the reference runs, its gradient norms."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from torch import nn

from common.config import Config, load_config, replace
from tests.golden.core import Case, Report, Skip
from tests.paths import ROOT

Build = Callable[[Config], nn.Module]

# Class of the reference -> builder in the task's module.
BUILDERS = {
    "ResNetVLBERT": "build_model",
    "ResNetVLBERTForPretraining": "build_single",
    "ResNetVLBERTForPretrainingMultitask": "build_multitask",
    "ResNetVLBERTForAttentionVis": "build_attention_vis",
}
PLAIN = {"NETWORK.FAST_PATH": False}  # config keys of the plain path; a key that the config lacks is left out
FULL_SIZE = 256  # hidden sizes from here on have the tolerance of models of the shipped size


def tolerance(cfg: Config, cnn: bool = False) -> float:
    """Absolute tolerance of a forward: of tiny models, of tiny models behind a CNN, of models of the shipped size."""
    if cfg.NETWORK.VLBERT.hidden_size >= FULL_SIZE:
        return 1e-4
    return 2e-5 if cnn else 1e-5


def case_config(case: Case) -> Config:
    """The config of a case: task defaults, then its YAML, then its overrides."""
    path = ROOT / case.json["cfg"] if case.json.get("cfg") else None
    return load_config(case.json["task_defaults"], path, case.overrides)


def task_builder(name: str, task: str) -> Build:
    """The builder of our module for a reference class of a task. Raises Skip for a task without a module."""
    try:
        module = importlib.import_module(f"{task}.module")
    except ModuleNotFoundError:
        raise Skip(f"{task} {name}") from None
    return getattr(module, BUILDERS[name])


def plain(build: Build, cfg: Config) -> nn.Module:
    """The module on the plain path, which computes what the reference computes: padding too, and norms as they are."""
    network = cfg.to_dict()["NETWORK"]
    changes = {key: value for key, value in PLAIN.items() if key.removeprefix("NETWORK.") in network}
    return build(replace(cfg, changes))


def without_dropout(model: nn.Module) -> None:
    for m in model.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0


def gradient_norms(model: nn.Module) -> dict[str, float | None]:
    """L2 norm of each parameter's gradient in float64, None without a gradient."""
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {name: None if grad is None else float(grad.double().norm()) for name, grad in grads.items()}


def check_gradients(case: Case, report: Report, norms: Mapping[str, float | None]) -> None:
    """Compare with the stored norms, and which parameters have no gradient."""
    without = sorted(name for name, norm in norms.items() if norm is None)
    report.equal("parameters without gradient", without, sorted(case.json["no_grad"]))
    compare_norms(report, norms, case.json["grad_norm"])


def compare_norms(report: Report, norms: Mapping[str, float | None], wanted: Mapping[str, float]) -> None:
    """Each norm within 1e-3 of the wanted one (CNN parameters 3e-3), plus 1e-5 of the total norm."""
    total = sum(v * v for v in wanted.values()) ** 0.5
    for name, want in wanted.items():
        if name.endswith("attention.self.key.bias"):  # mathematically zero
            continue
        norm = norms.get(name)
        if norm is None:
            report.fail(f"grad {name}", "no gradient")
            continue
        is_cnn = any(part in name for part in ("backbone.", "roi_head_feature_extractor."))
        report.close(f"grad {name}", norm, want, 1e-5 * total, 3e-3 if is_cnn else 1e-3)

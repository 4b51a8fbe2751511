"""Groups D and F: the task modules, and short and long training runs with the trainer's semantics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from common.config import replace
from common.data.collate import clip_pad
from common.data.sample import ModelOutput
from common.task import load_task
from common.train.optim import (
    RunPlan,
    apply_lr,
    build_optimizer,
    build_schedule,
    clip_grad_norm,
)
from tests.golden.batches import to_batch
from tests.golden.core import Case, Report, fill_weights
from tests.golden.models import build_task_model, case_config, check_gradients, tolerance, without_dropout

SCORE_PADDING = "spec 40 no. 1: compared with score_padding, the original's scores of padded boxes"


def run(case: Case, report: Report) -> None:
    cfg = case_config(case)
    model = build_task_model(case.json["class"], case.json["task"], cfg)
    fill_weights(model)
    if hasattr(model, "score_padding"):
        model.score_padding = True
        report.note(SCORE_PADDING)
    if "n_batches" in case.json:
        _run_training(case, report, model, cfg)
    else:
        _run_forward(case, report, model, cfg)


# ---------------------------------------------------------------------------------------------- D


def _run_forward(case: Case, report: Report, model: nn.Module, cfg: Any) -> None:
    task = case.json["task"]
    atol = tolerance(cfg, cnn=not cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED)
    model.eval()
    with torch.no_grad():
        inputs = {k: v for k, v in case.tensors().items() if k in case.json["eval_call"]}
        _compare(case, report, "eval", model(to_batch(task, inputs, cfg)), inputs, atol)
    if "grad_norm" not in case.json:  # a module that is only looked at
        return
    model.train()
    without_dropout(model)
    inputs = case.tensors()
    output = model(to_batch(task, inputs, cfg))
    _compare(case, report, "train", output, inputs, atol)
    output.loss.backward()
    check_gradients(case, report, model)


def _compare(case: Case, report: Report, mode: str, output: ModelOutput, inputs: dict[str, Any], atol: float) -> None:
    got = _reference_outputs(output, inputs)
    for entry in case.json["outputs"]:
        stored = entry["array"]
        if not stored.startswith(f"{mode}."):
            continue
        name = stored.removeprefix(f"{mode}.")
        if name not in got:
            report.fail(stored, f"not among our outputs: {', '.join(got)}")
        elif entry.get("value", 0) is None:
            report.equal(f"{stored} is None", got[name], None)
        else:
            value, want = got[name], case.array(stored)
            exact = name == "label" or name.endswith("_label") or "_label_" in name
            if exact:
                report.equal(stored, value, want)
            else:
                report.close(stored, value.reshape(want.shape) if value.numel() == want.size else value, want, atol)


def _reference_outputs(output: ModelOutput, inputs: dict[str, Any]) -> dict[str, Any]:
    """Our outputs under the reference's names, per-box ones widened to the incoming number of boxes."""
    got: dict[str, Any] = dict(output.predictions) | output.losses
    label = next((v for k, v in inputs.items() if k.endswith("label") and v is not None), None)
    if label is not None:
        got["label"] = label
    if output.loss is not None:
        got["loss"] = output.loss
    if "mvrc_labels" in inputs:
        got |= _pretraining_outputs(output, inputs)
    if "expression" in inputs:
        num_boxes = inputs["boxes"].shape[1]
        logits = got["label_logits"]
        got["label_logits"] = clip_pad(logits, (len(logits), num_boxes), -10000.0)
        if label is not None:
            got["label"] = clip_pad(label[:, : logits.shape[1]], (len(logits), num_boxes), -1)
    return got


def _pretraining_outputs(output: ModelOutput, inputs: dict[str, Any]) -> dict[str, Any]:
    """Widened to the reference's shapes; None for the outputs of a head that is switched off."""
    got: dict[str, Any] = {"relationship_label": None, "relationship_logits": None} | output.predictions
    texts = [v for k, v in inputs.items() if k.startswith("aux_text")]
    width = max(t.shape[1] for t in (inputs["text"], *texts))
    if "relationship_logits" in output.predictions:
        got["relationship_label"] = inputs["relationship_label"]
    for name, value in output.predictions.items():
        pad = -10000.0 if "logits" in name else 0 if name == "mvrc_label" else -1
        wide = inputs["boxes"].shape[1] if name.startswith("mvrc") else width
        if name.startswith(("mlm", "mvrc")):
            got[name] = clip_pad(value, (len(value), wide, *value.shape[2:]), pad)
    return got


# ---------------------------------------------------------------------------------------------- F


def _run_training(case: Case, report: Report, model: nn.Module, cfg: Any) -> None:
    """The stored batches in order, every epoch, with the parts that common.train.trainer is made of."""
    task, n, epochs = case.json["task"], case.json["n_batches"], case.json["epochs"]
    plan = RunPlan.from_config(cfg, 1, n)
    report.equal("effective_batch", plan.effective_batch, case.json["effective_batch"])
    report.close("base_lr", plan.base_lr, case.json["base_lr"], 1e-12, 1e-9)
    model.train()
    without_dropout(model)
    start = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(cfg.TRAIN, model.named_parameters(), plan.base_lr)
    schedule = build_schedule(cfg.TRAIN, plan)
    if not cfg.MODULE:  # of a case without a shipped YAML
        cfg = replace(cfg, {"MODULE": case.json["class"]})
    metrics = load_task(task).build_metrics(cfg, True)
    apply_lr(optimizer, schedule(0))
    losses, rates, norms, parts, updates = [], [], [], [], 0
    for step in range(n * epochs):
        if step % n == 0:
            metrics.reset()
        batch = to_batch(task, _batch_inputs(case, step % n), cfg)
        output = model(batch)
        (output.loss / plan.micro_batches).backward()
        if (step + 1) % plan.micro_batches == 0:
            updates += 1
            apply_lr(optimizer, schedule(updates))
            norms.append(float(clip_grad_norm(model.parameters(), cfg.TRAIN.CLIP_GRAD_NORM)))
            optimizer.step()
            optimizer.zero_grad()
        metrics.update(output.values(batch.targets))
        losses.append(float(output.loss.detach()))
        rates.append([group["lr"] for group in optimizer.param_groups])
        parts.append({k: float(v.detach()) for k, v in output.losses.items()})
        _compare_metrics(case, report, metrics.compute(), step)
    limits = case.json.get("tolerance", {})
    report.close("out.loss", losses, case.array("out.loss"), 0, limits.get("out.loss", 1e-4))
    report.close("out.lr", rates, case.array("out.lr"), 1e-9, 0)
    report.close("out.total_norm", norms, case.array("out.total_norm"), 0, limits.get("out.total_norm", 1e-3))
    for stored in (k for k in case.arrays if k.startswith("out.component.")):
        got = [p[stored.removeprefix("out.component.")] for p in parts]
        report.close(stored, got, case.array(stored), 1e-6, limits.get(stored, 1e-4))
    _compare_parameters(case, report, model, start, limits)
    _compare_trained(case, report, model, cfg, limits)


def _batch_inputs(case: Case, index: int) -> dict[str, Tensor | None]:
    prefix = f"batch{index}."
    return {k.removeprefix(prefix): v for k, v in case.tensors().items() if k.startswith(prefix)}


def _compare_metrics(case: Case, report: Report, got: dict[str, float], step: int) -> None:
    for name, want in case.json["metrics_per_iteration"][step].items():
        report.close(f"metric {name} at {step}", got[name], want, 1e-5, 1e-4)


def _compare_parameters(case: Case, report: Report, model: nn.Module, start: dict, limits: dict) -> None:
    parameters = dict(model.named_parameters())
    for name, want in case.json["param_checksums"].items():
        if name.endswith("key.bias"):  # mathematically zero gradient, so only noise moves them
            continue
        value = parameters[name].detach().double()
        report.close(f"{name} l2", value.norm(), want["l2"], 0, limits.get("param_l2", 1e-4))
        moved = (value - start[name]).norm()
        report.close(f"{name} delta_l2", moved, want["delta_l2"], 1e-12, limits.get("param_delta_l2", 1e-3))


def _compare_trained(case: Case, report: Report, model: nn.Module, cfg: Any, limits: dict) -> None:
    if "eval_call" not in case.json:
        return
    inputs = {k: v for k, v in _batch_inputs(case, 0).items() if k in case.json["eval_call"]}
    model.eval()
    with torch.no_grad():
        got = _reference_outputs(model(to_batch(case.json["task"], inputs, cfg)), inputs)
    for stored in (k for k in case.arrays if k.startswith("eval.")):
        limit = limits.get(stored, 1e-4)
        report.close(stored, got[stored.removeprefix("eval.")], case.array(stored), limit, 0)

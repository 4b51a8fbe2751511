"""Group E: optimizer, clipping, schedules and the scaling of the learning rate."""

from __future__ import annotations

import re

import torch
from torch import nn

from common.train.adamw import AdamW
from common.train.optim import build_optimizer, clip_grad_norm
from common.train.plan import RunPlan
from common.train.schedules import LinearSchedule, MultiStepSchedule, Schedule, build_schedule
from tests.golden.core import Case, Report
from tests.paths import ROOT

LR_TABLE = {"atol": 1e-9, "rtol": 0.0}
NUMBER = {"atol": 0.0, "rtol": 1e-9}  # of a config, where learning rates are as small as 1e-7


def run(case: Case, report: Report) -> None:
    if case.json.get("class") == "AdamW":
        for fused in (False, True):
            adamw(case, report, fused)
    elif "max_norms" in case.json:
        for fused in (False, True):
            clipping(case, report, fused)
    elif "schedules" in case.json:
        schedules(case, report)
    elif "rows" in case.json:
        scaling(case, report)
    else:
        raise ValueError(f"unknown optimizer case {case.name}")


def adamw(case: Case, report: Report, fused: bool) -> None:
    """A trajectory, by the formula or by the kernel.

    The last parameter is in a second group with its own lr, and one gradient is None once.
    """
    arguments, text = case.json["arguments"], case.json["param_groups"]
    inputs = case.tensors()
    params = [nn.Parameter(tensor) for name, tensor in inputs.items() if name.startswith("param")]
    grads = [tensor for name, tensor in inputs.items() if name.startswith("grad")]
    mult = _find(r"last parameter with lr\*([\d.]+)", text)[0]
    absent_param, absent_step = (int(x) for x in _find(r"param(\d+) has grad None at step index (\d+)", text))
    groups = [{"params": params[:-1]}, {"params": params[-1:], "lr": arguments["lr"] * float(mult)}]
    optimizer = AdamW(groups, **{**arguments, "betas": tuple(arguments["betas"])}, fused=fused)
    for k in range(case.json["steps"]):
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            param.grad = None if (i, k) == (absent_param, absent_step) else grad[k].clone()
        optimizer.step()
        for i, param in enumerate(params):
            report.close(f"param{i}[{k}] {fused=}", param, case.array(f"out.param{i}")[k])
    for i, param in enumerate(params):
        for moment in ("exp_avg", "exp_avg_sq"):
            report.close(f"{moment}{i} {fused=}", optimizer.state[param][moment], case.array(f"out.{moment}{i}"))


def clipping(case: Case, report: Report, fused: bool) -> None:
    """Our clip function, with either norm, against the framework's results and those of the original's helper."""
    for max_norm in case.json["max_norms"]:
        params = []
        for grad in case.tensors().values():
            params.append(nn.Parameter(torch.zeros_like(grad)))
            params[-1].grad = grad.clone()
        total = clip_grad_norm(params, max_norm, fused)
        report.close(f"{max_norm:g}.total_norm", total, case.array(f"out.{max_norm:g}.total_norm"))
        for prefix in ("", "helper."):
            for i, param in enumerate(params):
                name = f"{prefix}{max_norm:g}.grad{i}"
                report.close(name, param.grad, case.array(f"out.{name}"))
    squares = sum(norm**2 for norm in case.json["helper_norms"]["1"].values())
    report.close("helper_norms", total, squares**0.5)


def schedules(case: Case, report: Report) -> None:
    """Row k is the lr at step last_epoch + 1 + k, a column for each group."""
    for row in case.json["schedules"]:
        arguments = dict(row["kwargs"])
        start = arguments.pop("last_epoch", -1) + 1
        schedule: Schedule
        if row["class"] == "WarmupLinearSchedule":
            schedule = LinearSchedule(arguments["warmup_steps"], arguments["t_total"])
        elif row["class"] == "WarmupMultiStepLR":
            arguments["warmup_steps"] = arguments.pop("warmup_iters")
            schedule = MultiStepSchedule(**{**arguments, "milestones": tuple(arguments["milestones"])})
        else:
            report.fail(row["array"], f"unknown schedule {row['class']}")
            continue
        steps = range(start, start + row["n_steps"] + 1)
        got = [[lr * schedule(step) for lr in row["base_lrs"]] for step in steps]
        report.close(row["array"], got, case.array(row["array"]), **LR_TABLE)


def scaling(case: Case, report: Report) -> None:
    """Effective batch, learning rate, optimizer and schedule of each shipped config and number of processes."""
    from common.config import load_config

    batches = 1000  # per epoch, by the field's name
    for row in case.json["rows"]:
        # The rows count processes; GPUS would count in a single one.
        cfg = load_config(row["cfg"].split("/")[1], ROOT / row["cfg"], {"GPUS": "0"})
        plan = RunPlan.from_config(cfg, row["world_size"], batches)
        name = f"{row['cfg']} x{row['world_size']}"
        report.equal(f"{name} effective_batch", plan.effective_batch, row["effective_batch"])
        report.equal(f"{name} accumulation", plan.accumulation, row["grad_accumulate_steps"])
        for key, want in (("LR", "LR"), ("CLIP_GRAD_NORM", "clip_grad_norm")):
            report.close(f"{name} {key}", cfg.TRAIN[key], row[want], **NUMBER)
        _check_optimizer(report, name, cfg, plan, row)
        _check_schedule(report, name, build_schedule(cfg.TRAIN, plan), plan, row)


def _check_optimizer(report: Report, name: str, cfg, plan: RunPlan, row: dict) -> None:
    named = [(f"{key}.weight", nn.Parameter(torch.zeros(1))) for key, _ in row["lr_mult"]]
    named.append(("rest", nn.Parameter(torch.zeros(1))))
    optimizer = build_optimizer(cfg.TRAIN, named, plan.base_lr)
    report.equal(f"{name} optimizer", type(optimizer).__name__, row["optimizer"])
    lrs = [row["base_lr"] * mult for _, mult in row["lr_mult"]] + [row["base_lr"]]
    report.close(f"{name} base_lr", [group["lr"] for group in optimizer.param_groups], lrs, **NUMBER)
    group = optimizer.param_groups[-1]
    report.close(f"{name} weight_decay", group["weight_decay"], row["weight_decay"], **NUMBER)
    if "momentum" in group:
        report.close(f"{name} momentum", group["momentum"], row["momentum"], **NUMBER)


def _check_schedule(report: Report, name: str, schedule: Schedule, plan: RunPlan, row: dict) -> None:
    want = dict(row["lr_schedule_for_1000_batches_per_epoch"])
    report.equal(f"{name} last_epoch", plan.updates_before(2) - 1, want.pop("last_epoch_if_begin_epoch_2"))
    if isinstance(schedule, LinearSchedule):
        got = {"schedule": "triangle", "warmup_steps": schedule.warmup_steps, "t_total": schedule.total_steps}
        report.equal(f"{name} total_updates", plan.total_updates, want["t_total"])
    else:
        got = {
            "schedule": "step",
            "milestones": list(schedule.milestones),
            "gamma": schedule.gamma,
            "warmup_factor": schedule.warmup_factor,
            "warmup_iters": schedule.warmup_steps,
            "warmup_method": schedule.warmup_method,
        }
    report.equal(f"{name} schedule", got, want)


def _find(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"{text!r} does not match {pattern!r}")
    return match.groups()

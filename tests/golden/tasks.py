"""Groups D and I: the task modules, an eval forward, a train forward and its gradients.

The plain path is compared with the stored numbers, and the optimised path with the plain one, within the same limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common.config import Config
from common.data.collate import clip_pad
from common.data.sample import ModelOutput
from tests.golden.batches import to_batch
from tests.golden.core import FILL, Case, Report, fill_weights
from tests.golden.models import (
    case_config,
    check_gradients,
    compare_norms,
    gradient_norms,
    plain,
    task_builder,
    tolerance,
    without_dropout,
)

FAST = "optimised path against plain path"
SCORE_PADDING = "compared with score_padding, the original's scores of padded boxes"

Values = dict[str, Any]  # outputs of a module by name


@dataclass
class Forwards:
    """The raw outputs of both forwards; train is empty without a train forward, gradients without a backward pass.

    gradients: norms by parameter.
    """

    eval: Values
    train: Values
    gradients: dict[str, float | None]


def run(case: Case, report: Report) -> None:
    cfg = case_config(case)
    build = task_builder(case.json["class"], case.json["task"])
    atol = tolerance(cfg, cnn=not cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED)
    want = _forwards(case, plain(build, cfg), cfg, all_positions=True)
    _compare_stored(case, report, want, atol)
    fast = Report()
    _compare_paths(fast, _forwards(case, build(cfg), cfg, all_positions=False), want, atol)
    report.include(FAST, fast)
    if case.json["task"] == "refcoco":
        report.note(SCORE_PADDING)


def is_label(name: str) -> bool:
    """Whether an output is a label, which modules echo from their inputs."""
    return "label" in name and "logits" not in name


def _forwards(case: Case, model: nn.Module, cfg: Config, all_positions: bool) -> Forwards:
    prepare(model, all_positions)
    found = Forwards({}, {}, {})
    model.to(case.device).eval()
    inputs = eval_inputs(case.json, case.tensors())
    with torch.no_grad():
        found.eval = outputs(model(to_batch(case.json["task"], inputs, cfg).to(case.device)))
    if "grad_norm" not in case.json and not any(o.mode == "train" for o in case.outputs):
        return found
    model.train()
    without_dropout(model)
    output = model(to_batch(case.json["task"], case.tensors(), cfg).to(case.device))
    if "grad_norm" in case.json:
        assert output.loss is not None, "a case with gradients has labels"
        output.loss.backward()
        found.gradients = gradient_norms(model)
    found.train = outputs(output)
    return found


def _compare_stored(case: Case, report: Report, found: Forwards, atol: float) -> None:
    inputs = case.tensors()
    got = {
        "eval": reference_outputs(found.eval, eval_inputs(case.json, inputs)),
        "train": reference_outputs(found.train, inputs),
    }
    for output in case.outputs:
        report.output(output, got[output.mode], atol, exact=is_label(output.name))
    if "grad_norm" in case.json:
        check_gradients(case, report, found.gradients)


def _compare_paths(report: Report, fast: Forwards, want: Forwards, atol: float) -> None:
    """The optimised path may differ from the plain one by no more than that may differ from the reference."""
    for mode in ("eval", "train"):
        values = getattr(fast, mode)
        for name, value in labelled(getattr(want, mode)).items():
            report.close(f"{mode}.{name}", values[name], value, atol)
    norms = {name: norm for name, norm in want.gradients.items() if norm is not None}
    compare_norms(report, fast.gradients, norms)


def labelled(values: Values) -> Values:
    """Outputs that both paths compute.

    Of the pretraining heads those are the logits of labelled positions. Labels and choices (pred_boxes) are no numbers.
    """
    found = {name: value for name, value in values.items() if not is_label(name) and name != "pred_boxes"}
    for name in [name for name in found if name.startswith(("mlm_logits", "mvrc_logits"))]:
        logits, label = found.pop(name), values.get(name.replace("logits", "label"))
        if label is not None:
            found[name] = logits[label != -1 if name.startswith("mlm") else label.sum(-1) > 0]
    return found


def prepare(model: nn.Module, all_positions: bool) -> None:
    """Fill the weights, and switch on what only a comparison needs.

    all_positions: the pretraining heads run on all positions, as the stored logits do, of padding too.
    """
    fill_weights(model)
    if hasattr(model, "all_positions"):
        model.all_positions = all_positions
    if hasattr(model, "score_padding"):
        model.score_padding = True


def outputs(output: ModelOutput) -> Values:
    """Predictions, losses and their sum by name, detached and on the CPU."""
    got = output.predictions | output.losses | ({} if output.loss is None else {"loss": output.loss})
    return {name: value.detach().cpu() for name, value in got.items()}


def eval_inputs(content: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of the eval forward. content: the JSON of a case."""
    return {name: value for name, value in inputs.items() if name in content["eval_call"]}


def reference_outputs(output: Values, inputs: Mapping[str, Any]) -> Values:
    """Outputs of a module as the reference has them: with the labels, per-box ones widened to the incoming boxes."""
    got = dict(output)
    label = next((v for k, v in inputs.items() if k.endswith("label") and v is not None), None)
    if label is not None:
        got["label"] = label
    if "text" in inputs:
        got |= _pretraining_outputs(output, inputs)
    if "expression" in inputs and "label_logits" in output:
        num_boxes = inputs["boxes"].shape[1]
        logits = got["label_logits"]
        got["label_logits"] = clip_pad(logits, (len(logits), num_boxes), FILL)
        if label is not None:
            got["label"] = clip_pad(label[:, : logits.shape[1]], (len(logits), num_boxes), -1)
    return got


def _pretraining_outputs(output: Values, inputs: Mapping[str, Any]) -> Values:
    """Words and regions widened to the reference's shapes."""
    got: Values = {}
    texts = [v for k, v in inputs.items() if k.startswith("aux_text")]
    width = max(t.shape[1] for t in (inputs["text"], *texts))
    if "relationship_logits" in output:
        got["relationship_label"] = inputs.get("relationship_label")
    for name, value in output.items():
        pad = FILL if "logits" in name else 0 if name == "mvrc_label" else -1
        wide = inputs["boxes"].shape[1] if name.startswith("mvrc") else width
        if name.startswith(("mlm", "mvrc")) and "loss" not in name:
            got[name] = clip_pad(value, (len(value), wide, *value.shape[2:]), pad)
    return got

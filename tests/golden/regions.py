"""Group C: the region feature extractor."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from common.boxes import FEATURE_DIM
from common.nn.fast_rcnn import FastRCNN
from common.nn.packing import real_places, unpack
from common.weights.build import build_fast_rcnn
from tests.golden.core import Case, Report, fill_weights
from tests.golden.models import case_config, check_gradients, gradient_norms, plain, without_dropout

ATOL = 2e-5
ATOL_RAW = 1e-4  # of the feature map and the pooled features


def run(case: Case, report: Report) -> None:
    if not case.json["average_pool"]:
        raise ValueError("average_pool False: no user of the extractor has it, and it has no 2048-d feature")
    regulariser, width = case.json["enable_cnn_reg_loss"], case.json["final_dim"]
    model = plain(lambda cfg: build_fast_rcnn(cfg, regulariser, width), case_config(case))
    assert isinstance(model, FastRCNN)
    fill_weights(model)
    model.to(case.device).eval()
    with torch.no_grad():
        _compare(case, report, "eval", _forward(case, model))
        if "eval.body4" in case.arrays:
            body = model.backbone(case.tensors(case.device)["images"])
            report.equal("body4 shape", list(body.shape), case.json["body4_full_shape"])
            report.close("eval.body4", body[:, :: case.json["body4_stride"]], case.array("eval.body4"), ATOL_RAW)
    model.train()
    without_dropout(model)
    out = _forward(case, model)
    _compare(case, report, "train", out)
    if any(output.array == "train.loss" for output in case.outputs):
        _compare_loss(case, report, out)
    if "grad_norm" in case.json:
        check_gradients(case, report, gradient_norms(model))
    _compare_running_stats(case, report, model)


def _compare_loss(case: Case, report: Report, out: dict[str, Any]) -> None:
    """The loss of a case is a projection of the embeddings, plus the classification loss where there is one."""
    loss = (out["obj_reps"] * case.tensors(case.device)["proj"]).sum()
    if out["cnn_regularization_loss"] is not None:
        loss = loss + out["cnn_regularization_loss"].sum()
    report.close("train.loss", loss, case.array("train.loss"), 1e-3)
    loss.backward()


def _forward(case: Case, model: FastRCNN) -> dict[str, Any]:
    """The output by the reference's names, with what the sub-modules receive and return on the way there."""
    t = case.tensors(case.device)
    boxes, mask = t["boxes"], t["box_mask"].bool()
    masked, classes = t.get("mvrc_ops"), t.get("classes")
    seen: dict[str, Any] = {"obj_logits": None, "obj_labels": None}

    def keep_appearance(module: nn.Module, args: tuple[Any, ...]) -> None:
        appearance = args[0][:, FEATURE_DIM : 2 * FEATURE_DIM]  # behind the geometry
        seen["obj_reps_raw"] = unpack(appearance, mask, real_places(mask))

    def keep_logits(module: nn.Module, args: tuple[Any, ...], logits: Any) -> None:
        seen["obj_logits"] = logits

    handles: list[RemovableHandle] = [model.obj_downsample.register_forward_pre_hook(keep_appearance)]
    if model.regularizing_predictor is not None:
        handles.append(model.regularizing_predictor.register_forward_hook(keep_logits))
    if classes is not None:
        seen["obj_labels"] = classes[mask].long()
    out = model(
        t.get("images"),
        boxes[..., :4],
        mask,
        t["im_info"],
        features=boxes[..., 4:] if model.precomputed else None,
        classes=classes,
        box_masks=t.get("segms"),
        masked=None if masked is None else masked == 1,
        mask_feature=t.get("mask_visual_embed"),
    )
    for handle in handles:
        handle.remove()
    return seen | {"obj_reps": out.reps, "cnn_regularization_loss": out.class_loss}


def _compare(case: Case, report: Report, mode: str, out: dict[str, Any]) -> None:
    for output in case.outputs:
        if output.mode == mode and output.name not in ("body4", "loss"):
            report.output(output, out, ATOL_RAW if output.name == "obj_reps_raw" else ATOL)


def _compare_running_stats(case: Case, report: Report, model: nn.Module) -> None:
    state = model.state_dict()
    for key, (total, norm) in case.json.get("running_stats_after", {}).items():
        values = state[key].double()
        report.close(f"{key} sum", values.sum(), total, 1e-3)
        report.close(f"{key} norm", values.norm(), norm, 1e-4)

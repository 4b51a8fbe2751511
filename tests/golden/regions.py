"""Group C: the region feature extractor."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from common.nn.fast_rcnn import FEATURE_DIM, FastRCNN, RegionOutput
from common.nn.packing import unpack
from common.weights.build import build_region_encoder
from tests.golden.core import Case, Report, fill_weights
from tests.golden.models import case_config, check_gradients, without_dropout

ATOL = 2e-5
ATOL_RAW = 1e-4  # of the feature map and the pooled features


def run(case: Case, report: Report) -> None:
    if not case.json["average_pool"]:
        raise ValueError("average_pool False: no user of the extractor has it, and it gives no 2048-d feature")
    cfg = case_config(case)
    model = build_region_encoder(cfg, case.json["enable_cnn_reg_loss"], case.json["final_dim"])
    fill_weights(model)
    model.eval()
    with torch.no_grad():
        _compare(case, report, "eval", *_forward(case, model))
        if "eval.body4" in case.arrays:
            body = model.backbone(case.tensors()["images"])
            report.equal("body4 shape", list(body.shape), case.json["body4_full_shape"])
            report.close("eval.body4", body[:, :: case.json["body4_stride"]], case.array("eval.body4"), ATOL_RAW)
    model.train()
    without_dropout(model)
    out, seen = _forward(case, model)
    _compare(case, report, "train", out, seen)
    loss = (out.reps * case.tensors()["proj"]).sum()
    if out.class_loss is not None:
        loss = loss + out.class_loss.sum()
    report.close("train.loss", loss, case.array("train.loss"), 1e-3)
    loss.backward()
    check_gradients(case, report, model)
    _compare_running_stats(case, report, model)


def _forward(case: Case, model: FastRCNN) -> tuple[RegionOutput, dict[str, Any]]:
    """The output, and by the reference's names what the sub-modules receive and return on the way there."""
    t = case.tensors()
    boxes, mask = t["boxes"], t["box_mask"].bool()
    masked, classes = t.get("mvrc_ops"), t.get("classes")
    seen: dict[str, Any] = {}

    def keep_appearance(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen["obj_reps_raw"] = unpack(args[0][:, FEATURE_DIM : 2 * FEATURE_DIM], mask)  # behind the geometry

    def keep_logits(module: nn.Module, args: tuple[Any, ...], logits: Any) -> None:
        seen["obj_logits"] = logits

    handles = [model.obj_downsample.register_forward_pre_hook(keep_appearance)]
    if model.regularizing_predictor is not None and classes is not None:
        handles.append(model.regularizing_predictor.register_forward_hook(keep_logits))
        seen["obj_labels"] = classes[mask].long()
    out = model(
        t["images"],
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
    return out, seen


def _compare(case: Case, report: Report, mode: str, out: RegionOutput, seen: dict[str, Any]) -> None:
    # The reference keeps an axis of one.
    loss = None if out.class_loss is None else out.class_loss.reshape(1)
    got = {"obj_reps": out.reps, "cnn_regularization_loss": loss, **seen}
    for name, value in got.items():
        stored = f"{mode}.{name}"
        if stored in case.arrays:
            report.close(stored, value, case.array(stored), ATOL_RAW if name == "obj_reps_raw" else ATOL)


def _compare_running_stats(case: Case, report: Report, model: nn.Module) -> None:
    state = model.state_dict()
    for key, (total, norm) in case.json.get("running_stats_after", {}).items():
        values = state[key].double()
        report.close(f"{key} sum", values.sum(), total, 1e-3)
        report.close(f"{key} norm", values.norm(), norm, 1e-4)

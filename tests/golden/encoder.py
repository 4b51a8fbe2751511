"""Groups A and B: the visual-linguistic encoder, alone and with its pretraining heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.nn.vl_bert import VisualLinguisticBert, VisualLinguisticBertForPretraining
from common.weights.build import build_vlbert, build_vlbert_for_pretraining
from tests.golden.core import Case, Report, fill_weights
from tests.golden.models import case_config, check_gradients, tolerance, without_dropout

HEADS = ("relationship_logits", "mlm_logits", "mvrc_logits")


def run(case: Case, report: Report) -> None:
    cfg = case_config(case)
    if case.json["class"] == "VisualLinguisticBert":
        _run_encoder(case, report, build_vlbert(cfg), tolerance(cfg))
    elif case.json["class"] == "VisualLinguisticBertForPretraining":
        heads = (case.json[k] for k in ("with_rel_head", "with_mlm_head", "with_mvrc_head"))
        model = build_vlbert_for_pretraining(cfg, *heads)
        _run_pretraining(case, report, model, tolerance(cfg))
    else:
        raise ValueError(f"no adapter for class {case.json['class']}")


def _inputs(case: Case, model: VisualLinguisticBert) -> dict[str, Any]:
    """The reference packs visual and linguistic part of a region into one tensor."""
    t = case.tensors()
    visual = model.sizes.visual_size
    objects = t["object_vl_embeddings"]
    return {
        "text_ids": t["text_input_ids"],
        "segment_ids": t["text_token_type_ids"],
        "text_visual": t["text_visual_embeddings"],
        "text_mask": t["text_mask"].bool(),
        "object_visual": objects[..., :visual],
        "object_linguistic": objects[..., visual:],
        "object_mask": t["object_mask"].bool(),
    }


def _run_encoder(case: Case, report: Report, model: VisualLinguisticBert, atol: float) -> None:
    report.equal("aliases", fill_weights(model), case.json["aliases"])
    model.eval()
    with torch.no_grad():
        packed = model.embed(**_inputs(case, model))
        every = model(**_inputs(case, model), all_layers=True, with_attention=True)
        last = model(**_inputs(case, model))
    got: dict[str, Tensor | None] = {
        "eval.emb.embeddings": packed.embeddings,
        "eval.emb.mask": packed.mask,
        "eval.emb.text_mask_new": packed.text_mask,
        "eval.emb.object_mask_new": packed.object_mask,
        "eval.all.encoded_layers": torch.stack(every.layers),
        "eval.all.pooled": every.pooled,
        "eval.all.attention_probs": torch.stack(every.attention),
        "eval.sep.text": last.text,
        "eval.sep.object": last.objects,
        "eval.sep.pooled": last.pooled,
    }
    for output in case.json["outputs"]:
        name = output["array"]
        if name == "train.loss":
            continue
        if "value" in output and output["value"] is None:
            report.equal(f"{name} is None", got[name] is None, True)
        else:
            report.close(name, got[name], case.array(name), atol)
    model.train()
    without_dropout(model)
    out = model(**_inputs(case, model))
    t = case.tensors()
    loss = (out.layers[-1] * t["proj"]).sum()
    if out.pooled is not None and t.get("proj_pool") is not None:
        loss = loss + (out.pooled * t["proj_pool"]).sum()
    report.close("train.loss", loss, case.array("train.loss"), 1e-3)
    loss.backward()
    check_gradients(case, report, model)


def _run_pretraining(case: Case, report: Report, model: VisualLinguisticBertForPretraining, atol: float) -> None:
    report.equal("aliases", fill_weights(model), case.json["aliases"])
    model.eval()
    with torch.no_grad():
        got = _heads(case, model)
    for name in HEADS:
        stored = f"eval.{name}"
        if stored in case.arrays:
            report.close(stored, got[name], case.array(stored), atol)
        else:
            report.equal(f"{stored} is absent", name in got, False)
    model.train()
    without_dropout(model)
    t, got = case.tensors(), _heads(case, model)
    loss = sum((got[name] * t[f"proj_{name}"]).sum() for name in got)
    report.close("train.loss", loss, case.array("train.loss"), 1e-3)
    loss.backward()
    check_gradients(case, report, model)


def _heads(case: Case, model: VisualLinguisticBertForPretraining) -> dict[str, Tensor]:
    out = model(**_inputs(case, model))
    heads = {
        "relationship_logits": (model.relationsip_head, out.pooled),
        "mlm_logits": (model.mlm_head, out.text),
        "mvrc_logits": (model.mvrc_head, out.objects),
    }
    return {name: head(states) for name, (head, states) in heads.items() if head is not None}

"""Groups A and B: the visual-linguistic encoder, alone and with its pretraining heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from common.nn.vl_bert import VisualLinguisticBert, VisualLinguisticBertForPretraining
from common.weights.build import build_vlbert, build_vlbert_for_pretraining
from tests.golden.core import Case, Report, fill_weights
from tests.golden.models import case_config, check_gradients, gradient_norms, plain, tolerance, without_dropout

HEADS = ("with_rel_head", "with_mlm_head", "with_mvrc_head")


def run(case: Case, report: Report) -> None:
    cfg = case_config(case)
    if case.json["class"] == "VisualLinguisticBert":
        model = plain(build_vlbert, cfg)
    elif case.json["class"] == "VisualLinguisticBertForPretraining":
        model = plain(lambda cfg: build_vlbert_for_pretraining(cfg, *(case.json[k] for k in HEADS)), cfg)
    else:
        raise ValueError(f"no adapter for class {case.json['class']}")
    report.equal("aliases", fill_weights(model), case.json["aliases"])
    model.to(case.device)
    if isinstance(model, VisualLinguisticBertForPretraining):
        _run_pretraining(case, report, model, tolerance(cfg))
    else:
        assert isinstance(model, VisualLinguisticBert)
        _run_encoder(case, report, model, tolerance(cfg))


def _inputs(case: Case, model: VisualLinguisticBert) -> dict[str, Any]:
    """Arguments of forward. The reference has the visual and the linguistic part of a region in one tensor."""
    t = case.tensors(case.device)
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
    model.eval()
    with torch.no_grad():
        packed = model.embed(**_inputs(case, model))
        every = model(**_inputs(case, model), all_layers=True, with_attention=True)
        last = model(**_inputs(case, model))
    got: dict[str, Tensor | None] = {
        "emb.embeddings": packed.embeddings,
        "emb.mask": packed.mask,
        "emb.text_mask_new": packed.text_mask,
        "emb.object_mask_new": packed.object_mask,
        "all.encoded_layers": torch.stack(every.layers),
        "all.pooled": every.pooled,
        "all.attention_probs": torch.stack(every.attention),
        "sep.text": last.text,
        "sep.object": last.objects,
        "sep.pooled": last.pooled,
    }
    _compare_eval(case, report, got, atol)
    model.train()
    without_dropout(model)
    out = model(**_inputs(case, model))
    _check_training(case, report, model, {"proj": out.layers[-1], "proj_pool": out.pooled})


def _run_pretraining(case: Case, report: Report, model: VisualLinguisticBertForPretraining, atol: float) -> None:
    model.eval()
    with torch.no_grad():
        _compare_eval(case, report, _heads(case, model), atol)
    model.train()
    without_dropout(model)
    _check_training(case, report, model, {f"proj_{name}": value for name, value in _heads(case, model).items()})


def _compare_eval(case: Case, report: Report, got: Mapping[str, Tensor | None], atol: float) -> None:
    for output in case.outputs:
        if output.mode == "eval":
            report.output(output, got, atol)


def _check_training(case: Case, report: Report, model: nn.Module, projected: Mapping[str, Tensor | None]) -> None:
    """The loss of a case is the sum of the products of some outputs with an input; projected: input -> output."""
    inputs = case.tensors(case.device)
    products = [
        (value * inputs[name]).sum()
        for name, value in projected.items()
        if value is not None and inputs.get(name) is not None
    ]
    if "train.loss" not in case.arrays:
        return
    loss = torch.stack(products).sum()
    report.close("train.loss", loss, case.array("train.loss"), 1e-3)
    loss.backward()
    if "grad_norm" in case.json:
        check_gradients(case, report, gradient_norms(model))


def _heads(case: Case, model: VisualLinguisticBertForPretraining) -> dict[str, Tensor | None]:
    out = model(**_inputs(case, model))
    heads = {
        "relationship_logits": (model.relationsip_head, out.pooled),
        "mlm_logits": (model.mlm_head, out.text),
        "mvrc_logits": (model.mvrc_head, out.objects),
    }
    return {name: None if head is None else head(states) for name, (head, states) in heads.items()}

"""Group J: language, backbone and pretraining checkpoints loaded into our modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from common.data.text import load_tokenizer
from common.weights.build import build_fast_rcnn, build_vlbert, build_vlbert_for_pretraining
from common.weights.foreign import load_backbone, load_language, load_partial
from tests.golden.core import Case, Report, fill_weights, rule_values
from tests.golden.models import case_config, task_builder
from vcr.pretrained import adapt_pretrained
from vqa.task import init_classifier_rows


def run(case: Case, report: Report) -> None:
    cfg = case_config(case)
    name = case.json["class"]
    if name == "FastRCNN":
        model: nn.Module = build_fast_rcnn(cfg, final_dim=_final_dim(case))
    elif name == "VisualLinguisticBert":
        model = build_vlbert(cfg)
    elif name == "VisualLinguisticBertForPretraining":
        heads = case.json["heads"]
        model = build_vlbert_for_pretraining(
            cfg, heads["with_rel_head"], heads["with_mlm_head"], heads["with_mvrc_head"]
        )
    else:
        model = task_builder(name, case.json["task"])(cfg)
    fill_weights(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    _load(case, model, cfg)
    after = model.state_dict()
    listed = {row[0] for row in case.json["result"]}
    # The backbone case lists the keys of its file. The linear layer after the RoI head is random there.
    unlisted = {key for key in after if key.startswith("obj_downsample.")} - listed
    report.equal("keys", sorted(after.keys() - unlisted), sorted(listed))
    for key, total, norm, changed in case.json["result"]:
        value = after[key].double()
        report.close(f"{key} sum", value.sum(), total, 1e-4, 1e-5)
        report.close(f"{key} norm", value.norm(), norm, 1e-4, 1e-5)
        if not key.endswith("num_batches_tracked"):  # zero in model and file alike: nothing to see
            report.equal(f"{key} changed", not torch.equal(after[key], before[key]), changed)


def _final_dim(case: Case) -> int:
    text = case.json["constructor"]
    return int(text.split("final_dim=")[1].rstrip(")").split(",")[0])


def _checkpoint(case: Case) -> dict[str, Tensor]:
    """The weight rule on "checkpoint:" + key. Second names of a tensor have the values of the first."""
    keys = [key for key, _ in case.json["checkpoint"]]
    state = {}
    for key, shape in case.json["checkpoint"]:
        source = _alias_of(key, keys)
        state[key] = torch.from_numpy(rule_values(f"checkpoint:{source}", tuple(shape)))
    return state


def _alias_of(key: str, keys: list[str]) -> str:
    if key.endswith("predictions.decoder.weight"):
        return next(k for k in keys if k.endswith("word_embeddings.weight"))
    if key.endswith("lm_head.decoder.weight"):
        return next(k for k in keys if k.endswith("word_embeddings.weight"))
    first = key.replace("image_feature_extractor.head.0.", "image_feature_extractor.roi_head_feature_extractor.")
    return first if first in keys else key


def _load(case: Case, model: Any, cfg: Any) -> None:
    state, name = _checkpoint(case), case.json["class"]
    if name == "FastRCNN":
        path = case.tmp / f"resnet-{cfg.NETWORK.IMAGE_PRETRAINED_EPOCH:04d}.model"
        torch.save(state, path)
        load_backbone(model, path)
        return
    if name.startswith("VisualLinguisticBert"):
        load_language(model, state, case.name)
        return
    rules = cfg.NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES
    load_partial(model, state, rules, case.name, adapt_pretrained(cfg) if case.json["task"] == "vcr" else None)
    if case.json["task"] == "vqa" and cfg.NETWORK.CLASSIFIER_PRETRAINED:
        words = model.vlbert.word_embeddings.weight.detach()
        tokenizer = load_tokenizer(cfg.NETWORK.BERT_MODEL_NAME)
        init_classifier_rows(model.final_mlp[-1], words, case.json["answers"], tokenizer)

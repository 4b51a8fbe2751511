"""Group K: items and batches of the datasets on the data kit.

The items of a task in the reference's form are made by tests/golden/kit_<task>.py, which has
    ID_KEY                          the key of an item's id in the case
    config_changes(case)            folders of the data, after the files that the kit lacks were generated
    item(dataset, index, sample)    fields of one item; batch(dataset, samples): of the collated samples
    whole(dataset)                  arrays "all.*", of a fresh data set
and, where a case needs them, build(cfg, case) -> the data set where `build_dataset` has none for it, and
    run(case, report, cfg)          arrays of a case without items
Fields have the names of the case, without the prefix. Sums of `image` and `features` are computed here.
"""

from __future__ import annotations

import importlib
import random
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from common.config import load_config
from tests.golden.core import Case, Report, Skip
from tests.paths import ROOT

BATCH = 4
ATOL_BOX, ATOL_PIXEL = 1e-3, 0.02
READERS = {"vqa": "VQADataset", "vcr": "VCRDataset", "refcoco": "RefCOCODataset", "pretrain": "ConceptualCaptions"}


def run(case: Case, report: Report) -> None:
    task = case.json["task"]
    try:
        reader = importlib.import_module(f"{task}.dataset")
    except ModuleNotFoundError:
        raise Skip(f"{task} {READERS[task]}") from None
    reference = importlib.import_module(f"tests.golden.kit_{task}")
    cfg = _config(case, reference)

    def build() -> Any:
        if hasattr(reference, "build"):
            return reference.build(cfg, case)
        return reader.build_dataset(cfg, case.json["mode"], **case.json.get("constructor_arguments", {}))

    if "items" not in case.json:
        got: dict[str, Any] = {}
        for name, fields in reference.run(case, report, cfg).items():
            got |= _arrays(name, fields)
        for output in case.json.get("outputs", []):
            _compare(case, report, output, got)
        return
    dataset = build()
    report.equal("length", len(dataset), case.json["dataset_length"])
    got = {}
    seed = case.json.get("random_seed")
    for i, item in enumerate(case.json["items"]):
        index = item["index"]
        sample = dataset.sample(index, random.Random(item.get("random_seed", seed)))
        report.equal(f"item{i} id", sample.id, item[reference.ID_KEY])
        got |= _arrays(f"item{i}", reference.item(dataset, index, sample))
    if case.json.get("batch"):
        fresh = build()  # a data set may change with each item
        rng = random.Random(case.json["items"][0].get("random_seed", seed))  # the reference seeds once a batch
        samples = [fresh.sample(i, rng) for i in range(min(BATCH, len(fresh)))]
        got |= _arrays("batch0", reference.batch(fresh, samples))
    if any(o["array"].startswith(("all.", "every")) for o in case.json["outputs"]):
        got |= reference.whole(build())
    for output in case.json["outputs"]:
        _compare(case, report, output, got)


def _config(case: Case, reference: ModuleType) -> Any:
    """The case's YAML, then the folders and loader settings of the README, then the overrides."""
    changes: dict[str, Any] = {
        "NETWORK.BERT_MODEL_NAME": str(case.vocab / "bert-base-uncased"),
        "TRAIN.SHUFFLE": False,
        "TRAIN.ASPECT_GROUPING": False,
        **{f"{mode}.BATCH_IMAGES": BATCH for mode in ("TRAIN", "VAL", "TEST")},
    }
    changes |= reference.config_changes(case)
    return load_config(case.json["task"], ROOT / case.json["cfg"], changes | case.overrides)


def _arrays(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    got: dict[str, Any] = {f"{name}.{k}": v for k, v in fields.items() if k != "features"}
    image: Tensor | None = fields["image"]
    if image is not None:
        height, width = image.shape[-2:]
        rows, columns = (torch.arange(16) * (side - 1) // 15 for side in (height, width))
        got[f"{name}.image.shape"] = torch.tensor(image.shape)
        got[f"{name}.image.grid"] = image[..., rows, :][..., columns]
        got[f"{name}.image.mean"] = image.double().mean((-2, -1))
    if fields.get("features") is not None:
        features = fields["features"].double()
        got[f"{name}.boxes.feat_sum"], got[f"{name}.boxes.feat_l2"] = features.sum(-1), features.norm(dim=-1)
    return got


def _compare(case: Case, report: Report, output: dict[str, Any], got: dict[str, Any]) -> None:
    name = output["array"]
    if name not in got:
        report.fail(name, "not among the fields of our dataset")
        return
    if output.get("value", 0) is None:
        report.equal(f"{name} is None", got[name], None)
        return
    want, leaf = case.array(name), name.rsplit(".", 1)[-1]
    if leaf in ("grid", "mean"):
        report.close(name, got[name], want, ATOL_PIXEL, 0)
    elif leaf == "boxes":
        report.close(name, got[name], want, ATOL_BOX, 0)
    elif leaf == "im_info":
        report.close(name, got[name], want, 0, 1e-6)
        report.equal(f"{name} size", got[name][..., :2], want[..., :2])
    elif leaf in ("feat_sum", "feat_l2", "sum", "l2"):
        report.close(name, got[name], want, 0, 1e-5)
    elif leaf in ("values", "label") or "align_matrix" in name or name == "all.label_values.flat":
        report.close(name, got[name], want, 1e-6, 0)
    else:
        report.equal(name, torch.as_tensor(got[name]), want)

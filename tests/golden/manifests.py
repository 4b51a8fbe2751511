"""Group H: state-dict manifests of the shipped configs."""

from __future__ import annotations

from common.config import load_config
from tests.golden.core import Case, Report
from tests.golden.models import task_builder
from tests.paths import ROOT


def run(case: Case, report: Report) -> None:
    task = case.json["cfg"].split("/")[1]
    cfg = load_config(task, ROOT / case.json["cfg"])
    model = task_builder(case.json["class"], task)(cfg)
    trained = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
    entries = [
        [key, list(t.shape), str(t.dtype).removeprefix("torch."), trained.get(key)]
        for key, t in model.state_dict().items()
    ]
    report.equal("number of keys", len(entries), len(case.json["entries"]))
    for got, want in zip(entries, case.json["entries"], strict=False):
        report.equal(want[0], got, want)
    parameters = list(model.parameters())
    report.equal("parameters", sum(p.numel() for p in parameters), case.json["n_params"])
    report.equal("trained", sum(p.numel() for p in parameters if p.requires_grad), case.json["n_trainable"])
    first: dict[int, str] = {}
    aliases = {}
    for key, tensor in model.state_dict().items():
        if tensor.data_ptr() in first and tensor.numel():
            aliases[key] = first[tensor.data_ptr()]
        first.setdefault(tensor.data_ptr(), key)
    report.equal("aliases", aliases, case.json["aliases"])

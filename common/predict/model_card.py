"""The model card of a model folder: README.md in the form of the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.config import Config, dataset_sections
from common.predict.fields import Field

MEANINGS = {
    "model.safetensors": "weights",
    "config.yaml": "complete configuration, with the task",
    "vocab.txt": "vocabulary of word pieces",
    "tokenizer_config.json": "for `transformers.AutoTokenizer`",
    "preprocessing.json": "scales, means and boxes, for other programs",
    "checkpoint.json": "versions, validation, and digests of the text files",
    "cnn.safetensors": "CNN that computes the features of new regions",
    "classes.txt": "names of the region classes",
    "README.md": "this card",
}


@dataclass(frozen=True)
class Facts:
    """What a model card states.

    metric: name of the main metric. record: of the checkpoint, see `record_of`. versions: at the export. inputs: the
    fields of the predictor.
    """

    task: str
    cfg: Config
    metric: str
    record: Mapping[str, Any]
    versions: Mapping[str, str | None]
    licence: str
    inputs: Sequence[Field]


def model_card(facts: Facts, files: Sequence[str]) -> str:
    """The text of the card. files: names of all files of the folder."""
    network = facts.cfg.NETWORK
    sizes = network.VLBERT
    features = "precomputed region features" if network.IMAGE_FEAT_PRECOMPUTED else "pixels"
    lines = [
        "---",
        f"license: {facts.licence}",
        "library_name: vl-bert",
        f"tags: [vl-bert, {facts.task}]",
        "---",
        "",
        f"# VL-BERT, task {facts.task}",
        "",
        f"{sizes.num_hidden_layers} layers, hidden size {sizes.hidden_size}, {sizes.num_attention_heads} heads; "
        f"images enter as {features}.",
        "",
        "## Data",
        "",
        *(_data(section) for section in dataset_sections(facts.cfg)),
        "",
        "## Metrics",
        "",
        _metrics(facts),
        "",
        "## Versions",
        "",
        f"Training: {_versions(facts.record.get('made_with', {}))}.",
        f"Export: {_versions(facts.versions)}.",
        "",
        "## Licence",
        "",
        f"Weights: {facts.licence}.",
        "",
        "## Use",
        "",
        "```python",
        "from common.inference import load_predictor",
        "",
        'predictor = load_predictor("path/of/this/folder")',
        f"prediction = predictor({_call(facts.inputs)})",
        "prediction.answers[0]",
        "```",
        "",
        "`common` is in the repository of VL-BERT. Its `--ckpt` and NETWORK.PARTIAL_PRETRAIN take the folder too.",
        "",
        "## Files",
        "",
        "| file | content |",
        "| --- | --- |",
        *(f"| `{name}` | {MEANINGS.get(name, 'text file of the task, one entry a line')} |" for name in files),
        "",
    ]
    return "\n".join(lines)


def _data(section: Config) -> str:
    name = section.DATASET or "data set of the config"
    return f"* {name}: train `{section.TRAIN_IMAGE_SET}`, validation `{section.VAL_IMAGE_SET}`"


def _metrics(facts: Facts) -> str:
    found = facts.record.get("validation_monitor") or {}
    if found.get("best_epoch", -1) < 0:
        return "Not known: the checkpoint holds no validation."
    best, epoch = found["best_val"], found["best_epoch"]
    return f"Best validation of the training run: {facts.metric} {best:.4f}, in epoch {epoch} (the first is 0)."


def _versions(found: Mapping[str, Any]) -> str:
    known = ", ".join(f"{name} {value}" for name, value in found.items() if value is not None)
    return known or "not known"


def _call(inputs: Sequence[Field]) -> str:
    values = {"text": '"..."', "number": "1"}
    return ", ".join(['"image.jpg"', *(f"{f.name}={values.get(f.kind, '[...]')}" for f in inputs if f.required)])

"""Loads weight files of other code: language models, ResNets, VL-BERT checkpoints (original 2.22 to 2.28 and 3.29).

Every loader returns a LoadReport and raises CheckpointError when nothing useful matched. Files are read weights-only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.config import Config
from common.config.derived import LANGUAGE_FILES, backbone_path, numbered_file
from common.errors import CheckpointError, ConfigError
from common.nn.fast_rcnn import FastRCNN
from common.nn.vl_bert import VisualLinguisticBert, VisualLinguisticBertForPretraining
from common.weights.bert_config import warn_of_mismatches
from common.weights.checkpoint import load_file
from common.weights.model_folder import read_checkpoint, record_of
from common.weights.safetensors_file import WEIGHTS, read_safetensors
from common.weights.text_files import VOCABULARY, check_text_files

log = logging.getLogger(__name__)

State = dict[str, Tensor]


@dataclass
class LoadReport:
    """Result of loading a file. loaded, kept: keys of the model, filled and unchanged. unused: keys of the file."""

    source: str
    loaded: list[str]
    unused: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.source}: {len(self.loaded)} tensors loaded"
        for name, keys in (("file keys unused", self.unused), ("model keys keep their values", self.kept)):
            if keys:
                text += f"; {len(keys)} {name}: {', '.join(keys[:6])}{', ...' if len(keys) > 6 else ''}"
        return text


def read_tensors(path: Path) -> State:
    """A flat dict of tensors from .safetensors or a torch file, which may have them under `state_dict`.

    path: a file, or a model folder. Raises FileNotFoundError without the file, CheckpointError where it cannot be read
    or holds anything else.
    """
    if path.is_dir():
        path = path / WEIGHTS
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return _tensors_of(load_file(path), path)


def _tensors_of(content: Any, path: Path) -> State:
    """The tensors in the content of a torch file. Raises CheckpointError where it holds anything else."""
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"weights {path}: expected a dict of tensors, or one under `state_dict`")
    return dict(content)


# ---------------------------------------------------------------------------------------------- language weights


def find_language_weights(network: Config) -> Path | None:
    """The language file of the section NETWORK: BERT_PRETRAINED-%04d.model, or one in the folder BERT_MODEL_NAME.

    Returns None where there is neither.
    """
    if network.BERT_PRETRAINED:
        return Path(numbered_file(network.BERT_PRETRAINED, network.BERT_PRETRAINED_EPOCH))
    folder = Path(network.BERT_MODEL_NAME)
    return next((folder / name for name in LANGUAGE_FILES if (folder / name).is_file()), None)


def language_keys(state: Mapping[str, Tensor]) -> State:
    """The state dict with the keys of a BERT without heads: removes `bert.` and `roberta.`, renames gamma and beta."""
    renamed = {}
    for key, value in state.items():
        name = key.removeprefix("bert.").removeprefix("roberta.")
        renamed[name.replace("gamma", "weight").replace("beta", "bias")] = value
    return renamed


def load_language(model: VisualLinguisticBert, state: Mapping[str, Tensor], source: str) -> LoadReport:
    """Fill encoder, embeddings, and where they exist pooler and heads, from a (Ro)BERT(a) state dict (original 2.22).

    Raises CheckpointError when the embeddings or the encoder are incomplete, or a shape differs.
    """
    given = language_keys(state)
    new: State = {}
    for part in ("word_embeddings", "position_embeddings"):
        new[f"{part}.weight"] = _take(given, f"embeddings.{part}.weight", source)
    types = _take(given, "embeddings.token_type_embeddings.weight", source)
    new["token_type_embeddings.weight"] = _token_types(model, types)
    for leaf in ("weight", "bias"):
        new[f"embedding_LayerNorm.{leaf}"] = _take(given, f"embeddings.LayerNorm.{leaf}", source)
    for key in model.encoder.state_dict():
        new[f"encoder.{key}"] = _take(given, f"encoder.{key}", source)
    if model.pooler is not None:
        new |= _complete(given, {f"pooler.dense.{leaf}": f"pooler.dense.{leaf}" for leaf in ("weight", "bias")}, source)
    if isinstance(model, VisualLinguisticBertForPretraining):
        new |= _head_weights(model, given, new["word_embeddings.weight"], source)
    report = _assign(model, new, source)
    model.copy_special_words()
    report.unused = sorted(given)
    return report


def _token_types(model: VisualLinguisticBert, given: Tensor) -> Tensor:
    """The token type table of the model with the first rows replaced by those of the file.

    A RoBERTa file has one row, which all segments get. For the pretraining class only the two text segments get it, as
    in the original, and that of the regions stays random (original 2.23).
    """
    table = model.token_type_embeddings.weight.detach().clone()
    if given.shape[1:] != table.shape[1:] or len(given) > len(table):
        return given  # _assign raises for the shape
    if len(given) == 1:
        rows = 2 if isinstance(model, VisualLinguisticBertForPretraining) else len(table)
        table[:rows] = given
    else:
        table[: len(given)] = given
    return table


def _head_weights(model: VisualLinguisticBertForPretraining, given: State, words: Tensor, source: str) -> State:
    new: State = {}
    if model.relationsip_head is not None:
        target = "relationsip_head.caption_image_relationship"
        new |= _complete(given, {f"cls.seq_relationship.{x}": f"{target}.{x}" for x in ("weight", "bias")}, source)
    if model.mlm_head is not None:
        _name_roberta_head(given)
        given.pop("cls.predictions.decoder.bias", None)  # the same tensor as cls.predictions.bias
        if "cls.predictions.bias" in given:
            given.setdefault("cls.predictions.decoder.weight", words)  # newer files leave the tied tensor out
        keys = [k.removeprefix("mlm_head.") for k in model.state_dict() if k.startswith("mlm_head.")]
        new |= _complete(given, {f"cls.{key}": f"mlm_head.{key}" for key in keys}, source)
    return new


def _name_roberta_head(given: State) -> None:
    """Rename lm_head.* to the names of the same tensors in BERT."""
    names = {
        "lm_head.dense.weight": "transform.dense.weight",
        "lm_head.dense.bias": "transform.dense.bias",
        "lm_head.layer_norm.weight": "transform.LayerNorm.weight",
        "lm_head.layer_norm.bias": "transform.LayerNorm.bias",
        "lm_head.decoder.weight": "decoder.weight",
        "lm_head.bias": "bias",
    }
    for old, name in names.items():
        if old in given:
            given[f"cls.predictions.{name}"] = given.pop(old)


def load_head_transform(module: nn.Module, state: Mapping[str, Tensor], source: str) -> LoadReport | None:
    """Fill a PredictionHeadTransform from a language file's `cls.predictions.transform`; None where it has none."""
    given = language_keys(state)
    _name_roberta_head(given)
    prefix = "cls.predictions.transform."
    new = _complete(given, {prefix + key: key for key in module.state_dict()}, source)
    return _assign(module, new, source) if new else None


def _take(given: State, key: str, source: str) -> Tensor:
    if key not in given:
        some = ", ".join(list(given)[:4])
        raise CheckpointError(f"language weights {source}: no {key}; the file has {some}, ...")
    return given.pop(key)


def _complete(given: State, names: Mapping[str, str], source: str) -> State:
    """The tensors of one part, renamed: all of them, or none when the file has none."""
    if not any(old in given for old in names):
        return {}
    return {new: _take(given, old, source) for old, new in names.items()}


# ---------------------------------------------------------------------------------------------- backbone


def load_backbone(model: FastRCNN, path: Path | str) -> LoadReport:
    """Fill backbone and RoI head from a ResNet file in torchvision's naming; layer4 goes to the RoI head.

    Raises CheckpointError when a convolution is missing or a shape differs. Detector heads in the file are left unused.
    """
    given = read_tensors(Path(path))
    new: State = {}
    for key in model.backbone.state_dict():
        if key in given:
            new[f"backbone.{key}"] = given.pop(key)
        elif not key.endswith("num_batches_tracked"):
            raise CheckpointError(f"backbone {path}: no {key}; is it a ResNet of this depth in torchvision's naming?")
    for key in model.roi_head_feature_extractor.state_dict():
        if f"layer4.{key}" in given:
            new[f"roi_head_feature_extractor.{key}"] = given.pop(f"layer4.{key}")
        elif not key.endswith("num_batches_tracked"):
            raise CheckpointError(f"backbone {path}: no layer4.{key}, which the RoI head needs")
    report = _assign(model, new, str(path))
    report.unused = sorted(given)
    return report


# ---------------------------------------------------------------------------------------------- VL-BERT checkpoints

Adapt = Callable[[State], State]


def rename_prefixes(state: Mapping[str, Tensor], rules: Sequence[str]) -> State:
    """Rename keys by "old->new" rules of their prefixes. The first rule that matches a key wins (original 3.29).

    Raises ConfigError for a rule of another form.
    """
    pairs = []
    for rule in rules:
        old, arrow, new = rule.partition("->")
        if not arrow:
            raise ConfigError(f'NETWORK.PARTIAL_PRETRAIN_PREFIX_CHANGES: {rule!r} is not of the form "old->new"')
        pairs.append((old, new))
    renamed = {}
    for key, value in state.items():
        old, new = next(((o, n) for o, n in pairs if key.startswith(o)), ("", ""))
        renamed[new + key[len(old) :]] = value
    return renamed


def load_partial(
    model: nn.Module, state: Mapping[str, Tensor], rules: Sequence[str], source: str, adapt: Adapt | None = None
) -> LoadReport:
    """Copy the tensors of a VL-BERT checkpoint whose names `model` has (original 3.29).

    rules: see `rename_prefixes`. adapt: a task's own change of the renamed state dict, whose keys have no `module.`.
    Raises CheckpointError when no encoder layer matched or a shape differs.
    """
    given = {k.removeprefix("module."): v for k, v in rename_prefixes(state, rules).items()}
    if adapt is not None:
        given = adapt(given)
    own = model.state_dict()
    new = {key: given.pop(key) for key in list(given) if key in own}
    if not any("encoder.layer." in key for key in new):
        raise CheckpointError(
            f"{source}: none of its {len(state)} keys is an encoder layer of this model after "
            f"PARTIAL_PRETRAIN_PREFIX_CHANGES {list(rules)}; it has {', '.join(list(state)[:3])}, ..."
        )
    report = _assign(model, new, source)
    report.unused = sorted(given)
    return report


def _assign(model: nn.Module, new: Mapping[str, Tensor], source: str) -> LoadReport:
    """Copy tensors into a model (dtype converted), after checking every shape."""
    own = model.state_dict()
    wrong = [
        f"{key} is {tuple(value.shape)}, the model has {tuple(own[key].shape) if key in own else 'no such key'}"
        for key, value in new.items()
        if key not in own or own[key].shape != value.shape
    ]
    if wrong:
        raise CheckpointError(f"{source} does not fit the configured model: " + "; ".join(wrong[:6]))
    with torch.no_grad():
        for key, value in new.items():
            own[key].copy_(value)
    names = {tensor.data_ptr() for key, tensor in own.items() if key in new}
    kept = [key for key, tensor in own.items() if key not in new and tensor.data_ptr() not in names]
    return LoadReport(source, sorted(new), kept=kept)


# ---------------------------------------------------------------------------------------------- all of it, by config


def load_initial_weights(model: nn.Module, cfg: Config, adapt: Adapt | None = None) -> list[LoadReport]:
    """Load what a training run starts from: language weights, backbone, then PARTIAL_PRETRAIN. Logs each report.

    model: of a task, with the properties `language_model` and, unless it sees no image, `image_feature_extractor`.
    adapt: see `load_partial`. Raises FileNotFoundError where a file that the config names, or should name, is missing.
    """
    network = cfg.NETWORK
    found = [_language_weights(model, cfg), _backbone_weights(model, cfg)]
    reports = [report for report in found if report is not None]
    if network.PARTIAL_PRETRAIN:
        path, rules = network.PARTIAL_PRETRAIN, network.PARTIAL_PRETRAIN_PREFIX_CHANGES
        reports.append(load_partial(model, _read_partial(Path(path), cfg), rules, path, adapt))
    for report in reports:
        log.info("%s", report)
    return reports


def _read_partial(path: Path, cfg: Config) -> State:
    """The tensors of PARTIAL_PRETRAIN. Raises CheckpointError where its vocabulary is another one than that of `cfg`.

    The other text files may differ: a new task has answers of its own.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content = read_checkpoint(path)
    stored = record_of(content).get("text_files", {})
    check_text_files({key: stored[key] for key in (VOCABULARY,) if key in stored}, cfg, path)
    return _tensors_of(content, path)


def _language_weights(model: nn.Module, cfg: Config) -> LoadReport | None:
    network = cfg.NETWORK
    if network.VLBERT.get("from_scratch", False):
        log.info("NETWORK.VLBERT.from_scratch: no language weights")
        return None
    path = find_language_weights(network)
    if path is None:
        if network.BERT_RANDOM_INIT or network.PARTIAL_PRETRAIN:
            return None
        raise FileNotFoundError(
            f"language weights: NETWORK.BERT_PRETRAINED is empty and the folder NETWORK.BERT_MODEL_NAME "
            f"{network.BERT_MODEL_NAME!r} has none of {', '.join(LANGUAGE_FILES)}. Put them there, name "
            f"another folder, or set NETWORK.BERT_RANDOM_INIT true to start from random weights"
        )
    language_model = model.language_model
    if not isinstance(language_model, VisualLinguisticBert):
        raise TypeError(f"{type(model).__name__}.language_model is a {type(language_model).__name__}")
    warn_of_mismatches(path, cfg)
    return load_language(language_model, read_tensors(path), str(path))


def _backbone_weights(model: nn.Module, cfg: Config) -> LoadReport | None:
    network, extractor = cfg.NETWORK, getattr(model, "image_feature_extractor", None)
    if extractor is None or network.IMAGE_FEAT_PRECOMPUTED:
        return None
    if backbone := backbone_path(cfg):
        return load_backbone(extractor, backbone)
    if network.IMAGE_RANDOM_INIT or network.PARTIAL_PRETRAIN:
        return None
    raise FileNotFoundError(
        "backbone weights: NETWORK.IMAGE_PRETRAINED is empty. Name the prefix of a ResNet file "
        "(<prefix>-0000.model), or set NETWORK.IMAGE_RANDOM_INIT true to start from random weights"
    )

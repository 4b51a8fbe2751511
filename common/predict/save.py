"""The model folder: weights, complete config, vocabulary and other text files, preprocessing, record and model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.config import Config, dataset_sections, replace
from common.config.derived import backbone_path, usable_positions, value_at, vocabulary_path
from common.data.text import CLS, MASK, PAD, SEP, UNK
from common.errors import ConfigError
from common.files.atomic import new_folder
from common.predict.fields import Field
from common.predict.model_card import Facts, model_card
from common.provenance import versions
from common.task import Task, load_task
from common.weights.foreign import read_tensors
from common.weights.loaded import Loaded
from common.weights.model_folder import CLASSES, CONFIG, RECORD
from common.weights.safetensors_file import WEIGHTS, write_safetensors
from common.weights.text_files import VOCABULARY, digests

CARD = "README.md"
CNN = "cnn.safetensors"
VOCABULARY_NAME = "vocab.txt"
PREPROCESSING = "preprocessing.json"
TOKENIZER = "tokenizer_config.json"
# Stays on the machine that trained: a folder may become public.
PRIVATE = ("host", "command")


def save_folder(
    loaded: Loaded, cfg: Config, folder: Path, labels: Sequence[str] | None, licence: str, inputs: Sequence[Field]
) -> None:
    """Write a model folder, completely or not at all. An older model folder of that name is replaced.

    cfg: of the running predictor. labels: names of the region classes. licence: of the weights, for the model card.
    inputs: of the predictor, for the model card. Raises ConfigError where `folder` is a file or holds files of others.
    """
    folder = folder.resolve()
    task = load_task(cfg.task)
    stored = loaded.stored or cfg
    names = {VOCABULARY: VOCABULARY_NAME, **task.text_files}
    _check_free(folder, {*names.values(), WEIGHTS, CONFIG, RECORD, CLASSES, CARD, CNN, PREPROCESSING, TOKENIZER})
    with new_folder(folder, overwrite=True) as new:
        write_safetensors(new / WEIGHTS, loaded.model.state_dict())
        for key, name in names.items():
            shutil.copyfile(vocabulary_path(cfg) if key == VOCABULARY else value_at(cfg, key), new / name)
        files = dict(names)
        if (cnn := _region_cnn(stored)) is not None:
            write_safetensors(new / CNN, read_tensors(cnn))
            files["NETWORK.REGION_ENCODER"] = f"resnet:{CNN}"
        if labels is not None:
            (new / CLASSES).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        config = {"_TASK_": task.name, "_FILES_": files, **replace(stored, files).to_dict()}
        (new / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
        record = _record(loaded, task, cfg, names)
        _write_json(new / RECORD, record)
        _write_json(new / PREPROCESSING, preprocessing(stored))
        _write_json(new / TOKENIZER, tokenizer_config(stored))
        facts = Facts(task.name, stored, task.main_metric(cfg), record, versions(), licence, inputs)
        written = sorted([*(path.name for path in new.iterdir()), CARD])
        (new / CARD).write_text(model_card(facts, written), encoding="utf-8")


def preprocessing(cfg: Config) -> dict[str, Any]:
    """How an image becomes the input of the model, for programs without this code."""
    network = cfg.NETWORK
    return {
        "short_side": cfg.SCALES[0],
        "longest_side": cfg.SCALES[1],
        "channels": "BGR, 0 to 255",
        "pixel_means": list(network.PIXEL_MEANS),
        "pixel_stds": list(network.PIXEL_STDS),
        "boxes": "xyxy in pixels of the resized image",
        "image_is_first_box": dataset_sections(cfg)[0].ADD_IMAGE_AS_A_BOX,
        "features": "precomputed" if network.IMAGE_FEAT_PRECOMPUTED else "from pixels, by this model",
        "region_encoder": _encoder_name(cfg),
        "sequence_positions": usable_positions(cfg),
        "lower_case": True,
    }


def tokenizer_config(cfg: Config) -> dict[str, Any]:
    """What AutoTokenizer of transformers reads beside vocab.txt."""
    return {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "strip_accents": True,
        "tokenize_chinese_chars": True,
        "model_max_length": usable_positions(cfg),
        "pad_token": PAD,
        "unk_token": UNK,
        "cls_token": CLS,
        "sep_token": SEP,
        "mask_token": MASK,
    }


def _check_free(folder: Path, ours: set[str]) -> None:
    """Raises ConfigError unless `folder` is absent, empty, or a model folder without files of others."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder}: a file: expected a folder")
    found = sorted(path.name for path in folder.iterdir())
    others = [name for name in found if name not in ours]
    if others or (found and CONFIG not in found):
        raise ConfigError(f"{folder}: has {', '.join((others or found)[:3])}: expected a new or empty folder")


def _record(loaded: Loaded, task: Task, cfg: Config, names: Mapping[str, str]) -> dict[str, Any]:
    """The record of the checkpoint, with digests of the files of the folder and without private entries."""
    made_with = {k: v for k, v in loaded.record.get("made_with", {}).items() if k not in PRIVATE}
    found = {key: {**digest, "file": names[key]} for key, digest in digests(task, cfg).items()}
    return {**loaded.record, "made_with": made_with, "text_files": found}


def _region_cnn(cfg: Config) -> Path | None:
    """The file of the CNN that computes features of new images, for a model of precomputed features."""
    spec = cfg.NETWORK.REGION_ENCODER
    if not cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED or spec.startswith("module:"):
        return None
    file = spec.removeprefix("resnet:") or backbone_path(cfg)
    return Path(file) if file and Path(file).is_file() else None


def _encoder_name(cfg: Config) -> str | None:
    if not cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED:
        return None
    if _region_cnn(cfg) is not None:
        return f"resnet:{CNN}"
    return Path(cfg.NETWORK.REGION_ENCODER).name or None


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

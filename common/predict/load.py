"""From a checkpoint to a predictor: its task and config, the source of boxes, and what computes region features.

predictor = load_predictor("output/.../vl-bert_scenes-best.model")
prediction = predictor("a.jpg", question="what color is the square?", boxes=[[10, 20, 60, 70]])
prediction.answers[0]        {"answer": "red", "probability": 0.98}
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from common.config import Config, config_from_dict, load_config, replace
from common.config.derived import backbone_path
from common.data.build import build_transform
from common.detect.sources import build_source
from common.errors import CheckpointError, ConfigError
from common.predict.hub import download_folder
from common.predict.predictor import Predictor
from common.predict.region_features import RegionFeatureExtractor
from common.predict.user_images import Extractor, ModuleFeatureExtractor, UserImages
from common.regions.box_sources import BoxSource
from common.task import load_task
from common.weights.build import build_fast_rcnn
from common.weights.foreign import load_backbone, read_tensors
from common.weights.loaded import Loaded
from common.weights.model_folder import CLASSES, read_checkpoint, record_of
from common.weights.restore import restore
from common.weights.text_files import check_text_files


def load_predictor(
    ckpt: str | Path,
    task: str | None = None,
    cfg: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    precision: str = "fp32",
    boxes: str | BoxSource | None = None,
    encoder: str | None = None,
    labels: str | Path | None = None,
) -> Predictor:
    """The predictor of a checkpoint.

    ckpt: a checkpoint of this project, or a model folder, holds its config and task; for others give `task` and a YAML
    `cfg`. overrides:
    config keys, "KEY=VALUE", such as the place of a vocabulary that has moved. device: auto, cpu, cuda or cuda:N.
    precision: auto, fp32, bf16 or fp16.
    boxes: the source of boxes for images without boxes (common.regions.arguments.SOURCES).
    encoder: what computes region features for a model of precomputed features, resnet:FILE or module:NAME; default:
    NETWORK.REGION_ENCODER.
    labels: text file with the names of the region classes, one a line, for the region head of pretraining.
    Raises CheckpointError, ConfigError and FileNotFoundError.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ConfigError(f"device {device!r}: expected auto, cpu, cuda or cuda:N")
    path = Path(ckpt)
    content = read_checkpoint(path)
    found = load_task(task or _task_of(content, path))
    config = _config_of(found.name, content, path, cfg, overrides)
    record = record_of(content)
    check_text_files(record.get("text_files", {}), config, path)
    stored = replace(config, {"NETWORK.REGION_ENCODER": encoder}) if (encoder or "").startswith("resnet:") else config
    config = replace(config, {"DEVICE": device.partition(":")[0], "TRAIN.PRECISION": precision})
    if ":" in device:
        config = replace(config, {"GPUS": device.partition(":")[2]})
    if found.predictor is None:
        raise ConfigError(f"{found.name} has no predictor")
    state = content["state_dict"] if isinstance(content, dict) and "state_dict" in content else read_tensors(path)
    loaded = restore(found, config, state, path)
    loaded.record, loaded.stored = record, stored
    if labels is None and (path / CLASSES).is_file():
        labels = path / CLASSES
    return build_predictor(found.predictor, loaded, config, boxes, encoder, labels)


def from_pretrained(
    name: str | Path, revision: str | None = None, token: str | None = None, **options: Any
) -> Predictor:
    """The predictor of a model folder, or of a repository of the Hugging Face Hub, which is downloaded.

    name: a folder, else a repository "user/name". revision, token: of the repository. options: of `load_predictor`.
    Raises ConfigError without the package huggingface_hub, and the errors of that package and of `load_predictor`.
    """
    if Path(name).exists():
        return load_predictor(name, **options)
    return load_predictor(download_folder(str(name), revision, token), **options)


def build_predictor(
    kind: type[Predictor],
    loaded: Loaded,
    cfg: Config,
    boxes: str | BoxSource | None = None,
    encoder: str | None = None,
    labels: str | Path | None = None,
) -> Predictor:
    """The predictor of a model that is loaded already; arguments as in `load_predictor`."""
    chosen = encoder or cfg.NETWORK.REGION_ENCODER
    if not encoder and chosen.startswith("module:") and not chosen.startswith("module:data."):
        raise ConfigError(f"NETWORK.REGION_ENCODER {chosen!r}: a config may name modules of data/ only")
    extractor = _build_extractor(loaded, cfg, chosen, kind.fixed_padding)
    of_module = isinstance(extractor, ModuleFeatureExtractor)
    module = importlib.import_module(chosen.removeprefix("module:")) if of_module else None
    default = chosen if hasattr(module, "find_boxes") else None
    source = boxes if isinstance(boxes, BoxSource) else _build_source(boxes or default, cfg, loaded.device)
    return kind(loaded, cfg, UserImages(extractor, source), _read_labels(labels, module))


def _task_of(content: Any, path: Path) -> str:
    name = content.get("task") if isinstance(content, dict) else None
    if not name:
        raise CheckpointError(f"checkpoint {path}: has no task; name it (task=..., --task ...)")
    return name


def _config_of(task: str, content: Any, path: Path, cfg: str | Path | None, overrides: Sequence[str]) -> Config:
    if cfg is not None:
        return load_config(task, cfg, overrides)
    if not isinstance(content, dict) or not content.get("config"):
        raise CheckpointError(f"checkpoint {path}: has no config; name the YAML of its training (cfg=..., --cfg ...)")
    return replace(config_from_dict(task, content["config"]), overrides)


def _build_source(spec: str | None, cfg: Config, device: torch.device) -> BoxSource | None:
    if spec is None:
        return None
    try:
        return build_source(spec, device=str(device), with_features=cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _build_extractor(loaded: Loaded, cfg: Config, spec: str, fixed_padding: bool) -> Extractor | None:
    """The CNN of the model; for a model of precomputed features, the extractor that `spec` names."""
    transform = build_transform(cfg, fixed_padding=fixed_padding)
    if not cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED:
        own = getattr(loaded.model, "image_feature_extractor", None)
        return own and RegionFeatureExtractor(own, transform, loaded.device, loaded.precision.dtype)
    if spec.startswith("module:"):
        try:
            return ModuleFeatureExtractor(spec.removeprefix("module:"))
        except ValueError as error:
            raise ConfigError(str(error)) from error
    file = spec.removeprefix("resnet:") or backbone_path(cfg) or ""

    @cache  # with features from a store the CNN is never built
    def build() -> Extractor:
        if not Path(file).is_file():
            raise ConfigError(
                f"this model takes region features, and there is no CNN at {file or 'NETWORK.IMAGE_PRETRAINED'} to "
                "compute them: give encoder resnet:FILE, or boxes regions:STORE with a store that has features"
            )
        model = build_fast_rcnn(replace(cfg, {"NETWORK.IMAGE_FEAT_PRECOMPUTED": False}))
        load_backbone(model, file)
        return RegionFeatureExtractor(model, transform, loaded.device, loaded.precision.dtype)

    return lambda *arguments: build()(*arguments)


def _read_labels(path: str | Path | None, module: Any) -> Sequence[str] | None:
    """Names of region classes from a file, or CLASSES of the module that computes the features."""
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"names of region classes {path}: no such file")
        return Path(path).read_text(encoding="utf-8").splitlines()
    return getattr(module, "CLASSES", None)

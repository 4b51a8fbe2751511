"""From a checkpoint to a predictor: its task and config, the source of boxes, and what computes region features.

predictor = load_predictor("output/.../vl-bert_scenes-best.model")
prediction = predictor("a.jpg", question="what color is the square?", boxes=[[10, 20, 60, 70]])
prediction.answers[0]        {"answer": "red", "probability": 0.98}
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from common.config import Config, config_from_dict, load_config, replace
from common.config.derived import backbone_path
from common.data.build import build_transform
from common.detect.detector import Detector
from common.detect.sources import VisualGenomeBoxes, build_detector, build_source
from common.errors import CheckpointError, ConfigError
from common.files.text import read_text
from common.predict.hub import download_folder
from common.predict.predictor import Predictor
from common.predict.region_features import DetectorFeatures, RegionFeatureExtractor
from common.predict.user_images import Extractor, ModuleFeatureExtractor, UserImages
from common.regions.arguments import DEFAULT_LIMITS, DetectorLimits
from common.regions.box_sources import BoxSource
from common.regions.class_names import object_names
from common.task import load_task
from common.weights.build import build_fast_rcnn
from common.weights.foreign import load_backbone, read_tensors
from common.weights.loaded import Loaded
from common.weights.model_folder import CLASSES, read_checkpoint, record_of
from common.weights.restore import restore
from common.weights.sizes import MAX_PARAMETERS, check_limits
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
    limits: DetectorLimits = DEFAULT_LIMITS,
    max_parameters: int = MAX_PARAMETERS,
) -> Predictor:
    """The predictor of a checkpoint.

    ckpt: a checkpoint of this project, or a model folder, holds its config and task; for others give `task` and a YAML
    `cfg`. overrides:
    config keys, "KEY=VALUE", such as the place of a vocabulary that has moved. device: auto, cpu, cuda,
    cuda:N or mps, the GPU of a Mac, which is untested and takes precision fp32 or auto.
    precision: auto, fp32, bf16 or fp16.
    boxes: the source of boxes for images without boxes (common.regions.arguments.SOURCES).
    encoder: what computes region features for a model of precomputed features: vg:FILE, resnet:FILE or module:NAME.
    Default: NETWORK.REGION_ENCODER, or the Visual Genome detector where the boxes come from it.
    limits: which boxes of a detector are kept.
    labels: text file with the names of the region classes, one a line, for the region head of pretraining. Default:
    those of the encoder's module, or of Visual Genome for 1601 classes.
    max_parameters: that the config of a checkpoint may ask for. A YAML `cfg` may ask for any number.
    Raises CheckpointError, ConfigError and FileNotFoundError.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ConfigError(f"device {device!r}: expected auto, cpu, cuda, cuda:N or mps")
    path = Path(ckpt)
    content = read_checkpoint(path)
    found = load_task(task or _task_of(content, path))
    config = _config_of(found.name, content, path, cfg, overrides)
    if cfg is None:
        check_limits(config, path, max_parameters)
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
    return build_predictor(found.predictor, loaded, config, boxes, encoder, labels, limits)


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
    limits: DetectorLimits = DEFAULT_LIMITS,
) -> Predictor:
    """The predictor of a model that is loaded already; arguments as in `load_predictor`."""
    chosen = encoder or cfg.NETWORK.REGION_ENCODER
    if not encoder and chosen.startswith("module:") and not chosen.startswith("module:data."):
        raise ConfigError(f"NETWORK.REGION_ENCODER {chosen!r}: a config may name modules of data/ only")
    if not chosen and isinstance(boxes, str) and boxes.startswith("vg:"):
        chosen = boxes

    @cache  # a detector that finds boxes and computes features is loaded once
    def detector(path: str) -> Detector:
        return build_detector(path, limits, loaded.device, loaded.precision.dtype)

    extractor = _build_extractor(loaded, cfg, chosen, kind.fixed_padding, detector)
    of_module = isinstance(extractor, ModuleFeatureExtractor)
    module = importlib.import_module(chosen.removeprefix("module:")) if of_module else None
    source = boxes if isinstance(boxes, BoxSource) else None
    spec = chosen if boxes is None and hasattr(module, "find_boxes") else boxes
    if isinstance(spec, str):
        precomputed = cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED
        if spec.startswith("vg:"):
            source = VisualGenomeBoxes(detector(spec.removeprefix("vg:")), precomputed and spec == chosen)
        else:
            source = build_source(spec, limits, str(loaded.device), with_features=precomputed)
    names = _read_labels(labels, module) or object_names(cfg.NETWORK.VLBERT.get("visual_region_classes", 0))
    return kind(loaded, cfg, UserImages(extractor, source), names)


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


def _build_extractor(
    loaded: Loaded, cfg: Config, spec: str, fixed_padding: bool, detector: Callable[[str], Detector]
) -> Extractor | None:
    """The CNN of the model; for a model of precomputed features, the extractor that `spec` names.

    detector: loads the Visual Genome detector of a file.
    """
    transform = build_transform(cfg, fixed_padding=fixed_padding)
    if not cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED:
        own = getattr(loaded.model, "image_feature_extractor", None)
        return own and RegionFeatureExtractor(own, transform, loaded.device, loaded.precision.dtype)
    if spec.startswith("module:"):
        return ModuleFeatureExtractor(spec.removeprefix("module:"))
    if spec.startswith("vg:"):
        return DetectorFeatures(detector(spec.removeprefix("vg:")))
    file = spec.removeprefix("resnet:") or backbone_path(cfg) or ""

    @cache  # with features from a store the CNN is never built
    def build() -> Extractor:
        if not Path(file).is_file():
            raise ConfigError(
                f"this model takes region features, and there is no CNN at {file or 'NETWORK.IMAGE_PRETRAINED'} to "
                "compute them: give boxes vg:FILE (the Visual Genome detector), boxes regions:STORE with a store that "
                "has features, or encoder resnet:FILE"
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
        return read_text(path, "the name of a class a line").splitlines()
    return getattr(module, "CLASSES", None)

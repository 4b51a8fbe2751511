"""Answers for any image: `load_predictor(checkpoint)` gives a function of an image and a text.

predictor = load_predictor("output/.../vl-bert_scenes-best.model")
prediction = predictor("a.jpg", question="what color is the square?", boxes=[[10, 20, 60, 70]])
prediction.answers[0]        {"answer": "red", "probability": 0.98}
"""

from __future__ import annotations

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from common.config import Config, config_from_dict, dataset_sections, load_config, replace
from common.config.table import task_names
from common.data.collate import collate
from common.data.sample import ModelOutput, Sample
from common.data.text import CLS, MASK, SEP, BertTokenizer, load_tokenizer
from common.data.transforms import Transform
from common.errors import CheckpointError, ConfigError, DataError, ImageError, InputError
from common.nn.recording import recorded
from common.predict.fields import Field
from common.predict.image_features import NEVER, RegionEncoder
from common.predict.user_images import (
    Encode,
    ModuleEncoder,
    UserImage,
    UserImages,
    whole_box,
)
from common.regions.box_sources import BoxSource, build_source
from common.regions.regions import FEATURE_DIM, Regions
from common.task import load_task
from common.weights import checkpoint
from common.weights.build import build_region_encoder
from common.weights.foreign import load_backbone, read_tensors
from common.weights.loaded import Loaded
from common.weights.restore import restore

BATCH = 16


# What one bad input may raise, while others of the same run can be answered.
INPUT_ERRORS = (DataError, ImageError, FileNotFoundError)


@dataclass(frozen=True)
class Slot:
    """One position of the encoder's sequence. kind: "special", "word", "image", "region" or "end".

    text: word piece, or number of the region. word: number of the word that a piece belongs to. box: row of
    Prediction.boxes.
    """

    kind: str
    text: str
    word: int | None = None
    box: int | None = None


@dataclass
class Prediction:
    """What a model says about one image and text.

    answers: best first, each with "answer" (a text), "probability" in [0, 1], and what the task adds.
    boxes: [R, 4], xyxy in pixels of the image, in the order of the sequence; names: of each, the whole image first
    where it is one of them. size: width and height of the image in pixels. regions: what pretraining's region head
    says, {"box": row, "labels": [...]}.
    slots: the sequence of the encoder. attention: float32 [layers, heads, S, S] over these slots, rows (the third
    axis) sum to 1, or None. hidden_states: float32 [layers, S, H] of layers 1..n, or None. notes: what a user should
    know, such as text that was cut.
    """

    answers: list[dict[str, Any]]
    boxes: list[list[float]]
    names: list[str]
    size: tuple[int, int]
    slots: list[Slot]
    regions: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    attention: Tensor | None = None
    hidden_states: Tensor | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: answers, boxes, and regions and notes where there are any; no tensors."""
        more = {"regions": self.regions, "notes": self.notes}
        return {"answers": self.answers, "boxes": self.boxes, **{k: v for k, v in more.items() if v}}


@dataclass
class Prepared:
    """One input ready to run. boxes: of the sequence, in pixels of the image. tokens: rows of word pieces, one or one
    a choice. asked: what the task remembers. group: only equal ones may share a batch."""

    sample: Sample
    size: tuple[int, int]
    boxes: Tensor
    names: list[str]
    tokens: list[list[int]]
    asked: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    group: Any = None


class Predictor(ABC):
    """A trained model of one task with everything that it takes to answer for an image of one's own.

    Not for several threads at a time.
    """

    task: ClassVar[str]
    fields: ClassVar[tuple[Field, ...]]
    fixed_padding: ClassVar[bool] = False  # images on a canvas of one size, as in training

    def __init__(self, loaded: Loaded, cfg: Config, images: UserImages, labels: Sequence[str] | None = None) -> None:
        self.model, self.device = loaded.model, loaded.device
        self.precision, self.source = loaded.precision, loaded.source
        self.cfg, self.images, self.labels = cfg, images, labels
        self.image_box = dataset_sections(cfg)[0].ADD_IMAGE_AS_A_BOX
        self.tokenizer = load_tokenizer(cfg.NETWORK.BERT_MODEL_NAME)
        self.pieces = {i: piece for piece, i in self.tokenizer.vocab.items()}
        self.transform = image_transform(cfg, self.fixed_padding)
        section = cfg.NETWORK.VLBERT
        self.max_positions = section.max_position_embeddings - section.position_padding_idx - 1

    # ------------------------------------------------------------------------------------------ asking

    def __call__(
        self, image: Any, *, attention: bool = False, hidden_states: bool = False, top_k: int = 5, **asked: Any
    ) -> Prediction:
        """asked: the fields of the task, and `boxes`, [R, 4] xyxy in pixels, where the source's are not meant.

        image: a path, the bytes of a file, a PIL image, or an array uint8 [H, W, 3]. top_k: how many answers.
        Raises InputError, BoxError, ImageError and FileNotFoundError.
        """
        prepared = self.prepare({"image": image, **asked})
        return self.run([prepared], attention, hidden_states, top_k)[0]

    def many(
        self,
        items: Iterable[Mapping[str, Any]],
        batch_size: int = BATCH,
        attention: bool = False,
        hidden_states: bool = False,
        top_k: int = 5,
    ) -> Iterator[Prediction | Exception]:
        """A prediction for every item, a mapping of "image" and what __call__ takes, in order; one of INPUT_ERRORS in
        its place for an item that cannot be answered."""
        items = iter(items)
        while chunk := list(islice(items, batch_size)):
            ready: list[Prepared | Exception] = [self._try_prepare(item) for item in chunk]
            for kind, run in groupby(ready, lambda p: p.group if isinstance(p, Prepared) else Exception):
                if kind is Exception:
                    yield from run  # type: ignore[misc]
                else:
                    yield from self.run(list(run), attention, hidden_states, top_k)  # type: ignore[arg-type]

    def prepare(self, item: Mapping[str, Any]) -> Prepared:
        """Check and encode one input. Raises what __call__ raises."""
        asked = {k: v for k, v in item.items() if k not in ("image", "boxes", "id") and v is not None}
        self._check_fields(item, asked)
        return self.build(self.images.open(item["image"]), item.get("boxes"), asked)

    @torch.inference_mode()
    def run(
        self, prepared: Sequence[Prepared], attention: bool = False, hidden_states: bool = False, top_k: int = 5
    ) -> list[Prediction]:
        """Predictions of inputs of one group."""
        batch = collate([p.sample for p in prepared]).to(self.device)
        look = attention or hidden_states
        with ExitStack() as stack:
            stack.enter_context(self.precision.autocast())
            passes = stack.enter_context(recorded(self.model)) if look else []
            output = self.model(batch)
        predictions = []
        for i, p in enumerate(prepared):
            prediction, row = self.read(output, i, p, top_k)
            prediction.slots = self._slots(p, row)
            if look:
                self._look(prediction, passes[0], i * len(p.tokens) + row, attention, hidden_states)
            predictions.append(prediction)
        return predictions

    # ------------------------------------------------------------------------------------------ of the task

    @abstractmethod
    def build(self, image: UserImage, boxes: Any, asked: dict[str, Any]) -> Prepared:
        """The sample of an image and the fields of the task."""

    @abstractmethod
    def read(self, output: ModelOutput, index: int, prepared: Prepared, top_k: int) -> tuple[Prediction, int]:
        """The prediction for sample `index` of a batch (slots are filled in later), and which of its rows it shows."""

    # ------------------------------------------------------------------------------------------ parts

    def text(self, asked: Mapping[str, Any], name: str) -> str:
        """A field that is a text. Raises InputError for an empty one; a [MASK] inside is set apart with spaces."""
        value = asked[name]
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{name}: expected a text, got {_short(value)}")
        return re.sub(re.escape(MASK), f" {MASK} ", value)

    def cut(self, ids: list[int], room: int, name: str, notes: list[str]) -> list[int]:
        """Word pieces as far as the model has positions for them, with a note of what was cut."""
        if not ids:
            raise InputError(f"{name}: there is no word in it")
        if len(ids) > room:
            notes.append(f"{name} cut to its first {room} of {len(ids)} word pieces")
        return ids[:room]

    def one_text(
        self,
        image: UserImage,
        boxes: Any,
        asked: dict[str, Any],
        make_row: Callable[[list[int], BertTokenizer], tuple[Tensor, Tensor]],
        reserved: int,
    ) -> Prepared:
        """The sample of an image and the task's text. make_row: word pieces to token and segment ids. reserved:
        positions that the text cannot have."""
        notes: list[str] = []
        name = self.text_field
        ids = self.tokenizer.real_ids(self.tokenizer.tokenize(self.text(asked, name)))
        ids = self.cut(ids, self.max_positions - reserved, name, notes)
        rows, features = self.encoded(image, self.images.regions(image, boxes))
        text_ids, segment_ids = make_row(ids, self.tokenizer)
        sample = self.sample(image, rows, features, text_ids=text_ids, segment_ids=segment_ids)
        names = region_names(len(rows), self.image_box)
        return Prepared(sample, image.pixels.size, rows, names, [text_ids.tolist()], asked, notes)

    def encoded(self, image: UserImage, regions: Regions) -> tuple[Tensor, Tensor]:
        """Boxes [R, 4] and features [R, 2048], the whole image first where the model has it as a box.

        Raises InputError without any box.
        """
        boxes, features = regions.boxes, torch.zeros(0, FEATURE_DIM)
        if len(boxes):
            features = self.images.encode(image, boxes)
        if self.image_box:
            boxes = torch.cat([whole_box(image), boxes])
            features = torch.cat([self.images.whole(image, features)[None], features])
        if not len(boxes):
            raise InputError("boxes: expected at least one, this model does not see the whole image as a box")
        return boxes, features

    def sample(self, image: UserImage, boxes: Tensor, features: Tensor | None, **fields: Any) -> Sample:
        """boxes: [R, 4] in pixels of the image."""
        info = torch.tensor([*image.pixels.size, 1.0, 1.0])
        state = self.transform(None, boxes, info, None, NEVER)
        return Sample(id=image.name, im_info=state.im_info, boxes=state.inside, features=features, **fields)

    def prediction(self, prepared: Prepared, answers: list[dict[str, Any]], **more: Any) -> Prediction:
        return Prediction(
            answers, prepared.boxes.tolist(), prepared.names, prepared.size, [], notes=list(prepared.notes), **more
        )

    def label(self, number: int) -> str:
        """Name of a class of regions."""
        return self.labels[number] if self.labels and number < len(self.labels) else f"class {number}"

    def _check_fields(self, item: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        if item.get("image") is None:
            raise InputError("image: missing")
        known = [f.name for f in self.fields]
        if unknown := sorted(asked.keys() - set(known)):
            raise InputError(f"{', '.join(unknown)}: unknown; {self.task} takes image, boxes, {', '.join(known)}")
        if missing := [f.name for f in self.fields if f.required and f.name not in asked]:
            raise InputError(f"{', '.join(missing)}: missing")

    def _try_prepare(self, item: Mapping[str, Any]) -> Prepared | Exception:
        try:
            return self.prepare(item)
        except INPUT_ERRORS as error:
            return error

    def _slots(self, prepared: Prepared, row: int) -> list[Slot]:
        pieces = [self.pieces.get(i, "?") for i in prepared.tokens[row]]
        return sequence_slots(pieces, prepared.names if self.sees_regions else [])

    @property
    def text_field(self) -> str:
        """The field that an image is asked about with: the first required text."""
        return next(f.name for f in self.fields if f.kind == "text" and f.required)

    @property
    def sees_regions(self) -> bool:
        """Whether regions enter the sequence."""
        return True

    def _look(self, prediction: Prediction, seen: Any, row: int, attention: bool, hidden_states: bool) -> None:
        size = len(prediction.slots)
        if attention:
            prediction.attention = torch.stack([p[row, :, :size, :size] for p in seen.attention]).float().cpu()
        if hidden_states:
            prediction.hidden_states = torch.stack([h[row, :size] for h in seen.layers]).float().cpu()


def sequence_slots(pieces: Sequence[str], names: Sequence[str]) -> list[Slot]:
    """Words of a row, regions, END: the order of VisualLinguisticBert. names: of the regions, "image" for the whole."""
    slots: list[Slot] = []
    word = -1
    for piece in pieces:
        if piece in (CLS, SEP):
            slots.append(Slot("special", piece))
            continue
        word += not (piece.startswith("##") and slots[-1].kind == "word")
        slots.append(Slot("word", piece, word))
    slots += [Slot("image" if name == "image" else "region", name, box=box) for box, name in enumerate(names)]
    return [*slots, Slot("end", "[END]")]


def region_names(count: int, image_box: bool) -> list[str]:
    """ "image", "1", "2", ... of the `count` regions of a sequence, the first of which may be the whole image."""
    numbered = [str(i + 1) for i in range(count - image_box)]
    return ["image", *numbered] if image_box else numbered


def ranked(scores: Tensor, top_k: int) -> list[tuple[int, float]]:
    """(index, probability) of the largest of probabilities [n], best first."""
    values, order = scores.float().sort(descending=True, stable=True)
    return [(int(i), round(float(v), 6)) for i, v in zip(order[:top_k], values[:top_k], strict=True)]


def image_transform(cfg: Config, fixed_padding: bool) -> Transform:
    network = cfg.NETWORK
    return Transform(cfg.SCALES, network.PIXEL_MEANS, network.PIXEL_STDS, 0.0, fixed_padding)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---------------------------------------------------------------------------------------------- loading


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

    ckpt: one of ours carries its config and task; for others give `task` and a YAML `cfg`. overrides: config keys,
    "KEY=VALUE", such as where a vocabulary lies now. device: auto, cpu, cuda or cuda:N. precision: auto, fp32, bf16
    or fp16.
    boxes: where images without boxes get them (common.regions.box_sources.SOURCES).
    encoder: what computes the features of a model of precomputed ones, resnet:FILE or module:NAME, instead of
    NETWORK.REGION_ENCODER.
    labels: text file with a name of each class of regions a line, for the region head of pretraining.
    Raises CheckpointError, ConfigError, FileNotFoundError.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ConfigError(f"device {device!r}: expected auto, cpu, cuda or cuda:N")
    path = Path(ckpt)
    content = checkpoint.load_file(path)
    found = load_task(task or _task_of(content, path))
    config = _config_of(found.name, content, path, cfg, overrides)
    config = replace(config, {"DEVICE": device.partition(":")[0], "TRAIN.PRECISION": precision})
    if ":" in device:
        config = replace(config, {"GPUS": device.partition(":")[2]})
    if found.predictor is None:
        raise ConfigError(f"{found.name} has no predictor")
    state = content["state_dict"] if isinstance(content, dict) and "state_dict" in content else read_tensors(path)
    loaded = restore(found, config, state, path)
    return build_predictor(found.predictor, loaded, config, boxes, encoder, labels)


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
    encode = _build_encoder(loaded, cfg, chosen, kind.fixed_padding)
    module = importlib.import_module(chosen.removeprefix("module:")) if isinstance(encode, ModuleEncoder) else None
    default = chosen if hasattr(module, "find_boxes") else None
    source = boxes if isinstance(boxes, BoxSource) else _build_source(boxes or default, cfg, loaded.device)
    return kind(loaded, cfg, UserImages(encode, source), _read_labels(labels, module))


def _task_of(content: Any, path: Path) -> str:
    name = content.get("task") if isinstance(content, dict) else None
    if not name:
        raise CheckpointError(f"checkpoint {path}: does not say its task; name it: {', '.join(task_names())}")
    return name


def _config_of(task: str, content: Any, path: Path, cfg: str | Path | None, overrides: Sequence[str]) -> Any:
    if cfg is not None:
        return load_config(task, cfg, overrides)
    if not isinstance(content, dict) or not content.get("config"):
        raise CheckpointError(f"checkpoint {path}: carries no config; give the YAML that it was trained by")
    return replace(config_from_dict(task, content["config"]), overrides)


def _build_source(spec: str | None, cfg: Config, device: torch.device) -> BoxSource | None:
    if spec is None:
        return None
    try:
        return build_source(spec, device=str(device), with_features=cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _build_encoder(loaded: Loaded, cfg: Config, spec: str, fixed_padding: bool) -> Encode | None:
    """The model's own CNN, or for precomputed features the one that `spec` names."""
    transform = image_transform(cfg, fixed_padding)
    if not cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED:
        tower = getattr(loaded.model, "image_feature_extractor", None)
        return tower and RegionEncoder(tower, transform, loaded.device, loaded.precision.dtype)
    if spec.startswith("module:"):
        try:
            return ModuleEncoder(spec.removeprefix("module:"))
        except ValueError as error:
            raise ConfigError(str(error)) from error
    network = cfg.NETWORK
    file = spec.removeprefix("resnet:")
    if not file and network.IMAGE_PRETRAINED:
        file = f"{network.IMAGE_PRETRAINED}-{network.IMAGE_PRETRAINED_EPOCH:04d}.model"

    @cache  # with stored features it is never built
    def build() -> Encode:
        if not Path(file).is_file():
            raise ConfigError(
                f"this model takes region features, and there is no CNN at {file or 'NETWORK.IMAGE_PRETRAINED'} to "
                "compute them: give encoder resnet:FILE, or boxes regions:STORE with a store that has features"
            )
        model = build_region_encoder(replace(cfg, {"NETWORK.IMAGE_FEAT_PRECOMPUTED": False}))
        load_backbone(model, file)
        return RegionEncoder(model, transform, loaded.device, loaded.precision.dtype)

    return lambda *given: build()(*given)


def _read_labels(path: str | Path | None, module: Any) -> Sequence[str] | None:
    """Names of region classes from a file, or CLASSES of the module that computes the features."""
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"names of region classes {path}: no such file")
        return Path(path).read_text(encoding="utf-8").splitlines()
    return getattr(module, "CLASSES", None)

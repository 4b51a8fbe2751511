"""The predictor of a task: a trained model that answers for images of users."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch

from common.config import Config
from common.data.collate import collate
from common.data.sample import ModelOutput
from common.errors import CheckpointError, ConfigError, DataError, ImageError, InputError, RegionError
from common.nn.recording import recorded
from common.predict.fields import Field
from common.predict.hub import upload_folder
from common.predict.inputs import InputBuilder
from common.predict.prediction import Prediction, Prepared, Slot, finite, sequence_slots
from common.predict.save import save_folder
from common.predict.user_images import UserImage, UserImages
from common.weights.loaded import Loaded

log = logging.getLogger(__name__)

BATCH = 16

# Errors of one input. The other inputs of the same run can still be answered.
INPUT_ERRORS = (DataError, ImageError, RegionError, FileNotFoundError)
# Errors that every further input would have too.
RUN_ERRORS = (ConfigError, CheckpointError, torch.OutOfMemoryError, torch.AcceleratorError)


class Predictor(ABC):
    """A trained model of one task that answers for images of users. Not safe for several threads at a time.

    A task defines `task`, `fields`, `build` and `read`. fixed_padding: whether the task's dataset puts images on a
    canvas of one size. labels: names of the region classes. answers: the list that the model chooses from, None for a
    task without such a list.
    """

    task: ClassVar[str]
    fields: ClassVar[tuple[Field, ...]]
    fixed_padding: ClassVar[bool] = False
    answers: Sequence[str] | None = None

    def __init__(self, loaded: Loaded, cfg: Config, images: UserImages, labels: Sequence[str] | None = None) -> None:
        self.model, self.device = loaded.model, loaded.device
        self.precision, self.source, self.loaded = loaded.precision, loaded.source, loaded
        self.cfg, self.labels = cfg, labels
        self.inputs = InputBuilder.from_config(cfg, images, self.fixed_padding)
        self.pieces = {i: piece for piece, i in self.inputs.tokenizer.vocab.items()}

    def __call__(
        self, image: Any, *, attention: bool = False, hidden_states: bool = False, top_k: int = 5, **asked: Any
    ) -> Prediction:
        """The prediction for one image.

        image: a path, the bytes of a file, a PIL image, or an array uint8 [H, W, 3]. asked: values of the task's fields
        and, instead of the boxes of the source, `boxes`, [R, 4] xyxy in pixels. top_k: number of answers.
        Raises InputError, BoxError, RegionError, ImageError and FileNotFoundError. InputError also where the model
        computes NaN.
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
        """One prediction for each item, in order; for an item that cannot be answered, its error (INPUT_ERRORS).

        items: mappings with "image" and the other arguments of __call__. An exception of another type, raised while an
        item is prepared, is logged with its traceback, and the item gets an InputError. Raises RUN_ERRORS.
        """
        items = iter(items)
        while chunk := list(islice(items, batch_size)):
            ready: list[Prepared | Exception] = [self._try_prepare(item) for item in chunk]
            for kind, run in groupby(ready, lambda p: p.group if isinstance(p, Prepared) else Exception):
                if kind is Exception:
                    yield from run  # type: ignore[misc]
                else:
                    yield from self._run(list(run), attention, hidden_states, top_k)  # type: ignore[arg-type]

    def prepare(self, item: Mapping[str, Any]) -> Prepared:
        """Check one input and make its sample. Raises the errors of __call__."""
        asked = {k: v for k, v in item.items() if k not in ("image", "boxes", "id") and v is not None}
        self._check_fields(item, asked)
        image = self.images.open(item["image"])
        self.inputs.check_size(image)
        prepared = self.build(image, item.get("boxes"), asked)
        found = self.images.labels(image, prepared.boxes)
        prepared.labels = ["" if n == "image" else f for n, f in zip(prepared.names, found, strict=True)]
        return prepared

    def run(
        self, prepared: Sequence[Prepared], attention: bool = False, hidden_states: bool = False, top_k: int = 5
    ) -> list[Prediction]:
        """Predictions for inputs of one group. Raises InputError where the model computes NaN for one of them."""
        predictions = []
        for answer in self._run(prepared, attention, hidden_states, top_k):
            if isinstance(answer, Exception):
                raise answer
            predictions.append(answer)
        return predictions

    @torch.inference_mode()
    def _run(
        self, prepared: Sequence[Prepared], attention: bool, hidden_states: bool, top_k: int
    ) -> list[Prediction | InputError]:
        """The prediction for each input of one group, or its error."""
        batch = collate([p.sample for p in prepared]).to(self.device)
        record = attention or hidden_states
        with ExitStack() as stack:
            stack.enter_context(self.precision.autocast())
            passes = stack.enter_context(recorded(self.model)) if record else []
            output = self.model(batch)
        predictions: list[Prediction | InputError] = []
        for i, p in enumerate(prepared):
            try:
                prediction, choice = self.read(output, i, p, top_k)
                prediction.slots = self._slots(p, choice)
                if record:
                    self._add_recorded(prediction, passes[0], i * len(p.tokens) + choice, attention, hidden_states)
            except InputError as error:
                predictions.append(error)
            else:
                predictions.append(prediction)
        return predictions

    def save_pretrained(self, folder: str | Path, licence: str = "unknown") -> None:
        """Write a model folder, which `load_predictor` reads anywhere. licence: of the weights, for the model card.

        Raises ConfigError where `folder` holds files of others.
        """
        save_folder(self.loaded, self.cfg, Path(folder), labels=self.labels, licence=licence, inputs=self.fields)

    def push_to_hub(
        self, repo_id: str, private: bool = False, token: str | None = None, licence: str = "unknown"
    ) -> str:
        """Upload the model folder to a repository "user/name" of the Hugging Face Hub. Returns the URL of the commit.

        Raises ConfigError without the package huggingface_hub, and the errors of that package.
        """
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder, licence)
            return upload_folder(folder, repo_id, private, token)

    @property
    def images(self) -> UserImages:
        return self.inputs.images

    # ------------------------------------------------------------------------------------------ defined by a task

    @abstractmethod
    def build(self, image: UserImage, boxes: Any, asked: dict[str, Any]) -> Prepared:
        """The sample of an image, its boxes and the values of the task's fields."""

    @abstractmethod
    def read(self, output: ModelOutput, index: int, prepared: Prepared, top_k: int) -> tuple[Prediction, int]:
        """The prediction for sample `index` of a batch, without slots, and the number of the text sequence to show.

        The sequence is 0, or the number of a choice. Raises InputError for NaN, as `ranked` does.
        """

    @property
    def text_field(self) -> str:
        """The field with the text about the image: the first required text."""
        return next(f.name for f in self.fields if f.kind == "text" and f.required)

    @property
    def sees_regions(self) -> bool:
        """Whether regions enter the sequence."""
        return True

    # ------------------------------------------------------------------------------------------ parts

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
        except RUN_ERRORS:
            raise
        except Exception as error:  # a fault of the program: it must not cost the answers to the other inputs
            log.exception("an input could not be prepared")
            return InputError(f"this input could not be prepared: {type(error).__name__}: {error}")

    def _slots(self, prepared: Prepared, choice: int) -> list[Slot]:
        pieces = [self.pieces.get(i, "?") for i in prepared.tokens[choice]]
        return sequence_slots(pieces, prepared.names if self.sees_regions else [])

    def _add_recorded(
        self, prediction: Prediction, recording: Any, row: int, attention: bool, hidden_states: bool
    ) -> None:
        """Copy the maps and layer outputs of one sequence. row: its row in the encoder's batch."""
        size = len(prediction.slots)
        if attention:
            maps = torch.stack([p[row, :, :size, :size] for p in recording.attention])
            prediction.attention = finite(maps.float().cpu(), "attention")
        if hidden_states:
            prediction.hidden_states = torch.stack([h[row, :size] for h in recording.layers]).float().cpu()

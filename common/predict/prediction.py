"""An input that is ready to run, its prediction, and the positions of the encoder's sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from common.data.sample import Sample
from common.data.text import CLS, SEP
from common.errors import InputError


@dataclass(frozen=True)
class Slot:
    """One position of the encoder's sequence. kind: "special", "word", "image", "region" or "end".

    text: the word piece, or the number of the region. word: index of the word that the piece belongs to, None for other
    kinds. box: index in Prediction.boxes, None for text and END.
    """

    kind: str
    text: str
    word: int | None = None
    box: int | None = None


@dataclass
class Prediction:
    """The answers of a model for one image and text.

    answers: best first, each with "answer" (a text), "probability" in [0, 1], and the keys that the task adds.
    boxes: [R, 4], xyxy in pixels of the image, in the order of the sequence. names: one for each box. The whole image
    is the first box if the model takes it as a region. size: width and height of the image in pixels.
    labels: what the source of boxes found in each box, such as "brown dog 0.87"; "" for the whole image, for a box of
    the user that the source did not find, and where nothing is known.
    regions: classes that pretraining's region head predicts, {"box": index in boxes, "labels": [...]}.
    slots: the S positions of the sequence. attention: float32 [layers, heads, S, S], where axis 2 attends to axis 3 and
    sums to 1, or None. hidden_states: float32 [layers, S, H], the outputs of layers 1..n, or None.
    notes: hints for the user, such as a text that was cut.
    """

    answers: list[dict[str, Any]]
    boxes: list[list[float]]
    names: list[str]
    size: tuple[int, int]
    slots: list[Slot] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    regions: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    attention: Tensor | None = None
    hidden_states: Tensor | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: answers and boxes, and labels, regions and notes if there are any; no tensors."""
        more = {"labels": self.labels if any(self.labels) else [], "regions": self.regions, "notes": self.notes}
        return {"answers": self.answers, "boxes": self.boxes, **{k: v for k, v in more.items() if v}}


@dataclass
class Prepared:
    """One input that is ready to run.

    size: width and height of the image in pixels. boxes: [R, 4] of the sequence, xyxy in pixels of the image. names:
    one for each box. tokens: ids of the text sequences, one sequence, or one for each choice. asked: values of the
    task's fields. notes: hints for the user. group: inputs share a batch only if their groups are equal. labels: as in
    Prediction.
    """

    sample: Sample
    size: tuple[int, int]
    boxes: Tensor
    names: list[str]
    tokens: list[list[int]]
    asked: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    group: Any = None
    labels: list[str] = field(default_factory=list)

    def prediction(self, answers: list[dict[str, Any]]) -> Prediction:
        """The prediction with these answers for this input; slots are still missing."""
        return Prediction(
            answers, self.boxes.tolist(), self.names, self.size, labels=self.labels, notes=list(self.notes)
        )


def sequence_slots(pieces: Sequence[str], names: Sequence[str]) -> list[Slot]:
    """Positions of a sequence in the order of VisualLinguisticBert: text, regions, END.

    pieces: tokens of the text. names: of the regions, "image" for the whole image.
    """
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
    """Names of `count` regions: "1", "2", ...; with `image_box` the first one is "image"."""
    numbered = [str(i + 1) for i in range(count - image_box)]
    return ["image", *numbered] if image_box else numbered


def ranked(probabilities: Tensor, top_k: int) -> list[tuple[int, float]]:
    """(index, probability) of the `top_k` largest of probabilities [n], best first. Raises InputError for NaN."""
    values, order = finite(probabilities.float(), "probabilities").sort(descending=True, stable=True)
    return [(int(i), round(float(v), 6)) for i, v in zip(order[:top_k], values[:top_k], strict=True)]


def finite(values: Tensor, what: str) -> Tensor:
    """Returns `values` unchanged. Raises InputError for NaN and infinite ones. what: the start of the message."""
    if not values.isfinite().all():
        raise InputError(f"{what}: the model computed NaN or infinite values: are its weights damaged?")
    return values

"""The input of the viewer: one prediction with its attention, as JSON (original 6.4).

format     1
title, task, model, text     shown as they are
image      {"src": data URI, "width", "height"} in pixels of the image; src is null if the page has the image
boxes      [R, 4] xyxy in pixels of the image; names, labels: of each, "" for a box without a label
slots      the sequence of the encoder: {"kind", "text", "word", "box"}, see common.inference.Slot
layers, heads, size          of the attention, size = number of slots
attention  base64 of uint16, little-endian, [layers, heads, size, size]: round(65535 * weight); axis 2 is the slot
           that attends, axis 3 the slot that is attended to
answers    as in Prediction
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from common.predict.prediction import Prediction

FORMAT = 1
SCALE = 65535
SHOWN_SIDE = 800  # pixels of the longer side of the image in a report


def make_capture(
    prediction: Prediction, image: Image.Image | None, title: str, task: str = "", model: str = "", text: str = ""
) -> dict[str, Any]:
    """The capture of a prediction with attention. image: goes into the capture; None leaves it out.

    Raises ValueError for a prediction without attention.
    """
    if prediction.attention is None:
        raise ValueError("this prediction has no attention: ask for it with attention=True")
    layers, heads, size, _ = prediction.attention.shape
    width, height = prediction.size
    return {
        "format": FORMAT,
        "title": title,
        "task": task,
        "model": model,
        "text": text,
        "image": {"src": data_uri(image) if image is not None else None, "width": width, "height": height},
        "boxes": [[round(x, 2) for x in box] for box in prediction.boxes],
        "names": prediction.names,
        "labels": prediction.labels or [""] * len(prediction.boxes),
        "slots": [vars(slot) for slot in prediction.slots],
        "layers": layers,
        "heads": heads,
        "size": size,
        "attention": quantise(prediction.attention),
        "answers": prediction.answers,
        "notes": prediction.notes,
    }


def quantise(attention: Tensor) -> str:
    """Weights in [0, 1] as base64 of uint16, with an error of at most 1 / (2 * 65535)."""
    numbers = np.rint(attention.numpy() * SCALE).astype("<u2")
    return base64.b64encode(numbers.tobytes()).decode()


def data_uri(image: Image.Image) -> str:
    """The image, reduced to at most SHOWN_SIDE pixels a side, as a JPEG inside a URI."""
    shown = image.convert("RGB")
    shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"

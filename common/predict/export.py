"""Export of models of precomputed features to ONNX and torch.export; the command line is common/export.py."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from common.data.sample import Batch
from common.data.synthetic import made_up_batch
from common.errors import ConfigError
from common.files.atomic import atomic_write, write_text
from common.predict.predictor import Predictor
from common.predict.save import preprocessing
from common.task import load_task

# Names as in Batch; axes: B batch, C choices, T tokens, R regions. Padding is False in the masks.
INPUTS: dict[str, tuple[str, ...]] = {
    "boxes": ("B", "R", "4"),  # float32, xyxy in pixels of the resized image
    "box_mask": ("B", "R"),  # bool
    "im_info": ("B", "4"),  # float32, width, height of the resized image, two resize ratios
    "features": ("B", "R", "2048"),  # float32
    "box_classes": ("B", "R"),  # int64
    "text_ids": ("B", "T"),  # int64, with special tokens
    "segment_ids": ("B", "T"),  # int64
    "text_mask": ("B", "T"),  # bool
    "text_tags": ("B", "T"),  # int64
}
# A task with choices has an axis C of choices after B in these.
OF_TEXT = ("text_ids", "segment_ids", "text_mask", "text_tags")


class Positional(nn.Module):
    """The module of a task as a function of tensors, for exporters.

    inputs: names of the fields of Batch, in the order of the arguments. outputs: names of the predictions.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, tuple(inputs), tuple(outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given: dict[str, Any] = dict(zip(self.inputs, tensors, strict=True))
        predictions = self.model(Batch(ids=[], **given)).predictions
        return tuple(predictions[name] for name in self.outputs)


def export(predictor: Predictor, path: Path) -> dict[str, Any]:
    """Write the model of a predictor to `path`, .onnx or .pt2, and its description beside it, which is returned.

    Raises ConfigError for another suffix, and for a model that computes its features from pixels.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise ConfigError(f"-o {path}: expected a name that ends in .onnx or .pt2, or a folder: DIR/")
    if not predictor.cfg.NETWORK.IMAGE_FEAT_PRECOMPUTED:
        raise ConfigError("NETWORK.IMAGE_FEAT_PRECOMPUTED is false: only models that take region features are exported")
    batch = example(predictor)
    names = [name for name in INPUTS if getattr(batch, name) is not None]
    tensors = tuple(getattr(batch, name) for name in names)
    model = predictor.model.cpu().float().eval()
    with torch.no_grad():
        outputs = sorted(k for k, v in model(batch).predictions.items() if k != "pred_boxes" and isinstance(v, Tensor))
    function = Positional(model, names, outputs).eval()
    dims = {axis: torch.export.Dim(axis, min=1, max=4096) for axis in "BCTR"}
    axes = {name: axes_of(name, tensor) for name, tensor in zip(names, tensors, strict=True)}
    shapes = tuple({i: dims[axis] for i, axis in enumerate(axes[name]) if axis in dims} for name in names)
    with torch.no_grad():
        program = torch.export.export(function, tensors, dynamic_shapes=(shapes,), strict=False)
    about = {
        "task": predictor.task,
        "model": predictor.source.name,
        "inputs": {
            name: [str(t.dtype).removeprefix("torch."), *axes[name]] for name, t in zip(names, tensors, strict=True)
        },
        "outputs": outputs,
        "scales": list(predictor.cfg.SCALES),
    }
    more = metadata(predictor, about)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        if path.suffix == ".pt2":
            torch.export.save(program, file, extra_files={"metadata.json": json.dumps(more)})
        else:
            write_onnx(program, axes, outputs, more, file)
    write_text(path.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
    return about


def metadata(predictor: Predictor, about: dict[str, Any]) -> dict[str, str]:
    """What a program without this code needs beside the model. Lists have one entry a line; the rest is JSON.

    vocabulary: word pieces in the order of their ids. answers, classes: names of outputs, where the task has them.
    """
    vocab = predictor.inputs.tokenizer.vocab
    lists = {
        "vocabulary": sorted(vocab, key=vocab.__getitem__),
        "answers": predictor.answers,
        "classes": predictor.labels,
    }
    found = {name: "\n".join(entries) for name, entries in lists.items() if entries is not None}
    steps = preprocessing(predictor.cfg) | {"region_encoder": Path(predictor.cfg.NETWORK.REGION_ENCODER).name or None}
    facts = {**about, "image_is_first_box": steps["image_is_first_box"], "preprocessing": steps}
    text = {name: fact if isinstance(fact, str) else json.dumps(fact) for name, fact in facts.items()}
    return {**text, **found}


def axes_of(name: str, tensor: Tensor) -> tuple[str, ...]:
    """The axes of an input; texts of a task with choices have one more."""
    return ("B", "C", "T") if name in OF_TEXT and tensor.dim() == 3 else INPUTS[name]


def example(predictor: Predictor) -> Batch:
    """A batch with padding, for tracing; what is in it does not matter."""
    made_up = load_task(predictor.task).made_up
    batch = made_up_batch(made_up, predictor.cfg, samples=2, words=7, boxes=5, targets=False)
    return replace(batch, auxiliary=())


def write_onnx(
    program: torch.export.ExportedProgram,
    inputs: Mapping[str, Sequence[str]],
    outputs: Sequence[str],
    more: Mapping[str, str],
    file: BinaryIO,
) -> None:
    """Write an ONNX file. inputs: axes by name. more: metadata of the file."""
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError("a .onnx file needs onnx and onnxscript: pip install onnx onnxscript") from error
    for name in ("onnxscript", "onnx_ir", "torch.onnx"):  # they log every step
        logging.getLogger(name).setLevel(logging.WARNING)
    exported = torch.onnx.export(
        program, input_names=list(inputs), output_names=list(outputs), dynamo=True, verbose=False
    )
    assert exported is not None
    model = exported.model_proto
    name_axes(model.graph, inputs)
    onnx.helper.set_model_props(model, {**props(model), **more})
    file.write(model.SerializeToString())


def name_axes(graph: Any, inputs: Mapping[str, Sequence[str]]) -> None:
    """Rename the free axes of an ONNX graph, also in expressions: B, C, T and R instead of the exporter's s14."""
    letters: dict[str, str] = {}
    for value in graph.input:
        for dim, axis in zip(value.type.tensor_type.shape.dim, inputs[value.name], strict=True):
            if dim.dim_param:
                letters[dim.dim_param] = axis
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: letters.get(word[0], word[0]), dim.dim_param)


def props(model: Any) -> dict[str, str]:
    """The metadata that the exporter wrote into an ONNX model."""
    return {entry.key: entry.value for entry in model.metadata_props}

"""Weight files of the Visual Genome detector: Caffe models, MILVLG's PyTorch port, and safetensors made of either
(original 12.12 and 12.13).

Every form is mapped to the state dict of VisualGenomeDetector by one table, `detector_table`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.errors import CheckpointError
from common.files.caffemodel import read_caffemodel
from common.files.downloads import check_download
from common.files.safe_pickle import load_pickle
from common.nn.parts import PLAIN, Parts
from common.nn.resnet import BLOCKS, EXPANSION
from common.weights.checkpoint import load_file, load_model
from common.weights.foreign import LoadReport, State, read_tensors

if TYPE_CHECKING:
    from common.detect.network import VisualGenomeDetector

DOCUMENT = "model/pretrained_model/PREPARE_PRETRAINED_MODELS.md"
RIGHT_FILES = "resnet101_faster_rcnn_final.caffemodel or bua-caffe-frcn-r101_with_attributes.pth"
METADATA = {"format": "visual-genome-detector", "version": "1"}  # of our own safetensors files

NUM_ANCHORS, RPN_CHANNELS = 12, 512
FEATURE = 512 * EXPANSION  # width of pool5
SIZED_LAYERS = ("cls_score", "attr_score", "cls_embedding", "fc_attr")  # their weights decide DetectorSizes


@dataclass(frozen=True)
class DetectorSizes:
    """The arguments of VisualGenomeDetector that a weight file decides.

    num_classes: objects and the background. num_attributes: attributes and "no attribute". embedding_dim, hidden_dim:
    of the attribute head.
    """

    num_layers: int = 101
    num_classes: int = 1601
    num_attributes: int = 401
    embedding_dim: int = 256
    hidden_dim: int = 512


@dataclass
class DetectorWeights:
    """state: the complete state dict of VisualGenomeDetector, float32. unused: other tensors of the file, by name."""

    sizes: DetectorSizes
    state: State
    unused: list[str]


class Entry(NamedTuple):
    """A tensor of the detector. caffe: "<layer>.<index of the blob>". port: key in MILVLG's files."""

    key: str
    caffe: str
    port: str
    shape: tuple[int, ...]


def load_detector(path: str | Path, parts: Parts = PLAIN) -> tuple[VisualGenomeDetector, LoadReport]:
    """Returns the detector of a weight file, in eval mode on the CPU, and the report of what matched.

    Raises as `read_detector` does.
    """
    from common.detect.network import VisualGenomeDetector

    weights = read_detector(path)
    network = VisualGenomeDetector(**asdict(weights.sizes), parts=parts)
    load_model(network, weights.state, str(path))
    return network.eval(), weights_report(weights, path)


def weights_report(weights: DetectorWeights, path: str | Path) -> LoadReport:
    return LoadReport(str(path), sorted(weights.state), unused=weights.unused)


def read_detector(path: str | Path) -> DetectorWeights:
    """Reads a .caffemodel, or a torch or safetensors file with the keys of MILVLG's port or of VisualGenomeDetector.

    Raises FileNotFoundError without the file. Raises CheckpointError for a damaged file, for a tensor that is missing
    or has another shape (with both shapes), and for files of other models, with what each is.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"detector weights {path}: no such file; {DOCUMENT} lists where it was published")
    check_download(path)
    source = f"detector weights {path}"
    if path.suffix == ".caffemodel":
        return from_caffe(read_caffemodel(path), source)
    state = _read_state(path)
    if reason := why_not_a_detector(state):
        raise CheckpointError(f"{source}: {reason}. {DOCUMENT} lists the files of the detector")
    return from_state(state, source)


def from_caffe(blobs: Mapping[str, Sequence[np.ndarray]], source: str) -> DetectorWeights:
    """The weights of a Caffe model, from its blobs by layer. Raises CheckpointError as `read_detector` does."""
    given = _caffe_tensors(blobs, source)
    blocks = [name for name in given if name.startswith("res4") and name.endswith("_branch2a.0")]
    lettered = "res4b_branch2a.0" in given
    depth = _depth(_block_number(name, lettered) + 1 for name in blocks)
    sizes = _sizes(given, depth, {f"{layer}.0": layer for layer in SIZED_LAYERS})
    table = list(detector_table(sizes, lettered))
    _drop_leading_ones(given, {entry.caffe: entry.shape for entry in table})
    return _take(given, {entry.key: (entry.caffe, entry.shape) for entry in table}, sizes, source)


def from_state(given: Mapping[str, Tensor], source: str) -> DetectorWeights:
    """The weights of a state dict with the keys of MILVLG's port or of VisualGenomeDetector.

    Raises CheckpointError as `read_detector` does.
    """
    own = "rpn.objectness.weight" in given
    stage = "backbone.layer3." if own else "backbone.res4."
    depth = _depth(int(number) + 1 for k in given if k.startswith(stage) and (number := k.split(".")[2]).isdigit())
    heads = {f"{layer}.weight": layer for layer in SIZED_LAYERS}
    if not own:
        heads = {e.port: heads[e.key] for e in detector_table(DetectorSizes()) if e.key in heads}
    sizes = _sizes(given, depth, heads)
    names = {e.key: (e.key if own else e.port, e.shape) for e in detector_table(sizes)}
    return _take(dict(given), names, sizes, source)


def why_not_a_detector(state: Mapping[str, Tensor]) -> str | None:
    """What a state dict holds instead of the detector. None where it may be one."""
    keys = [key.removeprefix("module.") for key in state]
    if any(k.endswith("objectness_logits.weight") and v.shape[:1] == (NUM_ANCHORS,) for k, v in state.items()):
        return (
            "a detector for detectron2, such as airsplay's pickles: 12 objectness logits instead of 24, the background "
            "is the last class, and boxes are computed in another way, so boxes and features would differ. "
            f"Use {RIGHT_FILES}"
        )
    if any(key.startswith(("vlbert.", "image_feature_extractor.")) for key in keys):
        return "a VL-BERT checkpoint, which has no detector"
    if any(key.startswith(("backbone.body.", "backbone.fpn.")) for key in keys):
        return "a detector of torchvision, which is the box source detector:FILE"
    if "layer1.0.conv1.weight" in keys and not any("rpn" in key for key in keys):
        return (
            "a ResNet alone, such as resnet101-pt-vgbua-0000.model: it has no region proposal network and no heads, so "
            f"it cannot find boxes. Use {RIGHT_FILES}"
        )
    if any("word_embeddings" in key or "encoder.layer." in key for key in keys):
        return "a language model"
    return None


def detector_table(sizes: DetectorSizes, lettered: bool = False) -> Iterator[Entry]:
    """Every tensor of the detector but the counters of batch norms.

    lettered: the blocks of res3 and res4 in the Caffe model are a, b, c, d instead of a, b1, b2, b3.
    """
    for conv, norm, caffe, port, shape in _convolutions(sizes.num_layers, lettered):
        yield Entry(f"{conv}.weight", f"{caffe}.0", f"{port}.weight", shape)
        rest = "_conv1" if caffe == "conv1" else caffe.removeprefix("res")  # bn_conv1, bn2a_branch1
        leaves = {"weight": f"scale{rest}.0", "bias": f"scale{rest}.1"}
        leaves |= {"running_mean": f"bn{rest}.0", "running_var": f"bn{rest}.1"}
        for leaf, blob in leaves.items():
            yield Entry(f"{norm}.{leaf}", blob, f"{port}.norm.{leaf}", shape[:1])
    rpn, box = "proposal_generator.rpn_head", "roi_heads.box_predictor"
    classes, feature_map = sizes.num_classes, 256 * EXPANSION
    weights = (
        ("rpn.conv", "rpn_conv/3x3", f"{rpn}.conv", (RPN_CHANNELS, feature_map, 3, 3)),
        ("rpn.objectness", "rpn_cls_score", f"{rpn}.objectness_logits", (2 * NUM_ANCHORS, RPN_CHANNELS, 1, 1)),
        ("rpn.deltas", "rpn_bbox_pred", f"{rpn}.anchor_deltas", (4 * NUM_ANCHORS, RPN_CHANNELS, 1, 1)),
        ("cls_score", "cls_score", f"{box}.cls_score", (classes, FEATURE)),
        ("bbox_pred", "bbox_pred", f"{box}.bbox_pred", (4 * classes, FEATURE)),
        ("cls_embedding", "cls_embedding", f"{box}.cls_embed", (classes, sizes.embedding_dim)),
        ("fc_attr", "fc_attr", f"{box}.attr_linear1", (sizes.hidden_dim, FEATURE + sizes.embedding_dim)),
        ("attr_score", "attr_score", f"{box}.attr_linear2", (sizes.num_attributes, sizes.hidden_dim)),
    )
    for key, caffe, port, shape in weights:
        yield Entry(f"{key}.weight", f"{caffe}.0", f"{port}.weight", shape)
        if key != "cls_embedding":
            yield Entry(f"{key}.bias", f"{caffe}.1", f"{port}.bias", shape[:1])


def _convolutions(num_layers: int, lettered: bool) -> Iterator[tuple[str, str, str, str, tuple[int, ...]]]:
    """Key of the convolution, key of its batch norm, names in the two other forms, shape of the weight."""
    yield "backbone.conv1", "backbone.bn1", "conv1", "backbone.stem.conv1", (64, 3, 7, 7)
    channels = 64
    for number, num_blocks in enumerate(BLOCKS[num_layers], start=2):
        planes = 64 * 2 ** (number - 2)
        for i in range(num_blocks):
            ours = f"head.{i}" if number == 5 else f"backbone.layer{number - 1}.{i}"
            caffe = f"res{number}{_block_name(number, i, lettered)}_branch"
            port = f"roi_heads.res5.{i}" if number == 5 else f"backbone.res{number}.{i}"
            if i == 0:
                shortcut = (planes * EXPANSION, channels, 1, 1)
                yield f"{ours}.downsample.0", f"{ours}.downsample.1", f"{caffe}1", f"{port}.shortcut", shortcut
            shapes = [(planes, channels, 1, 1), (planes, planes, 3, 3), (planes * EXPANSION, planes, 1, 1)]
            for j, shape in enumerate(shapes, start=1):
                yield f"{ours}.conv{j}", f"{ours}.bn{j}", f"{caffe}2{'abc'[j - 1]}", f"{port}.conv{j}", shape
            channels = planes * EXPANSION


def _block_name(stage: int, block: int, lettered: bool) -> str:
    if stage in (2, 5) or lettered:
        return chr(ord("a") + block)
    return f"b{block}" if block else "a"


def _block_number(layer: str, lettered: bool) -> int:
    """The number of the block of a layer such as res4b7_branch2a, 0 for a name of another form."""
    name = layer.removeprefix("res4").split("_")[0]
    if lettered:
        return ord(name) - ord("a") if len(name) == 1 else 0
    return int(name[1:]) if name[1:].isdigit() else 0


def _depth(blocks: Iterator[int]) -> int:
    """The least depth whose third stage has at least that many blocks; blocks that are then missing are reported."""
    num_blocks = max(blocks, default=BLOCKS[101][2])
    return next((depth for depth in sorted(BLOCKS) if BLOCKS[depth][2] >= num_blocks), max(BLOCKS))


def _sizes(given: Mapping[str, Tensor], num_layers: int, heads: Mapping[str, str]) -> DetectorSizes:
    """The sizes of a file. heads: {name of a matrix in the file: its layer}; one that is missing has the usual size."""
    shapes = {layer: given[name].shape[-2:] for name, layer in heads.items() if name in given and given[name].ndim > 1}
    usual = DetectorSizes()
    return DetectorSizes(
        num_layers,
        num_classes=shapes["cls_score"][0] if "cls_score" in shapes else usual.num_classes,
        num_attributes=shapes["attr_score"][0] if "attr_score" in shapes else usual.num_attributes,
        embedding_dim=shapes["cls_embedding"][1] if "cls_embedding" in shapes else usual.embedding_dim,
        hidden_dim=shapes["fc_attr"][0] if "fc_attr" in shapes else usual.hidden_dim,
    )


def _caffe_tensors(blobs: Mapping[str, Sequence[np.ndarray]], source: str) -> State:
    """{"<layer>.<index>": blob}. Mean and variance of batch norms are divided by their third blob."""
    given: State = {}
    for layer, arrays in blobs.items():
        tensors = [torch.from_numpy(array) for array in arrays]
        if layer.startswith("bn"):
            tensors = _divided(layer, tensors, source)
        elif layer.startswith(("conv1", "res")) and len(tensors) != 1:
            raise CheckpointError(
                f"{source}: {layer} has {len(tensors)} blobs; a convolution of this detector has no bias"
            )
        given |= {f"{layer}.{i}": tensor for i, tensor in enumerate(tensors)}
    return given


def _divided(layer: str, tensors: list[Tensor], source: str) -> list[Tensor]:
    if len(tensors) != 3 or tensors[2].numel() != 1:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise CheckpointError(f"{source}: {layer} has blobs of {shapes}; expected mean, variance and one number")
    factor = float(tensors[2])
    return [tensor / factor if factor else torch.zeros_like(tensor) for tensor in tensors[:2]]


def _drop_leading_ones(given: State, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if name in given and (extra := given[name].ndim - len(shape)) > 0 and set(given[name].shape[:extra]) == {1}:
            given[name] = given[name].reshape(given[name].shape[extra:])


def _take(
    given: State, names: Mapping[str, tuple[str, tuple[int, ...]]], sizes: DetectorSizes, source: str
) -> DetectorWeights:
    """The tensors of the table under our keys. names: {our key: (name in the file, shape)}."""
    problems = []
    for name, shape in names.values():
        if name not in given:
            problems.append(f"{name} is missing, expected {shape}")
        elif tuple(given[name].shape) != shape:
            problems.append(f"{name} is {tuple(given[name].shape)}, expected {shape}")
        elif not given[name].isfinite().all():
            problems.append(f"{name} has numbers that are infinite or NaN")
    if problems:
        listed = "; ".join(problems[:6]) + ("; ..." if len(problems) > 6 else "")
        raise CheckpointError(
            f"{source}: no Visual Genome detector of {sizes.num_layers} layers, {len(problems)} tensors: {listed}"
        )
    state = {key: given.pop(name).float() for key, (name, _) in names.items()}
    counters = {key.replace("running_mean", "num_batches_tracked") for key in state if key.endswith("running_mean")}
    state |= {key: torch.tensor(0) for key in sorted(counters)}
    return DetectorWeights(sizes, state, sorted(given.keys() - counters))


def _read_state(path: Path) -> State:
    """The tensors of a torch file (also under `model` or `state_dict`), of safetensors, or the arrays of a pickle."""
    if path.suffix == ".safetensors":
        _check_version(path)
        return dict(read_tensors(path))
    content = load_pickle(path) if path.suffix in (".pkl", ".pickle") else load_file(path)
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"detector weights {path}: expected a dict of tensors, got {type(content).__name__}")
    tensors = {str(k): torch.as_tensor(v) for k, v in content.items() if isinstance(v, (Tensor, np.ndarray))}
    if not tensors:
        raise CheckpointError(f"detector weights {path}: has no tensors, also not under `model`")
    return tensors


def _check_version(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"detector weights {path}: cannot be read ({error})") from error
    if metadata.get("format") == METADATA["format"] and metadata.get("version") != METADATA["version"]:
        raise CheckpointError(
            f"detector weights {path}: version {metadata.get('version')} of the format {METADATA['format']}; expected "
            f"{METADATA['version']}"
        )

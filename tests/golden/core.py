"""The parts that all adapters share: a case, the comparison of its numbers, and the weight rule.

A golden folder holds one JSON per case (with an NPZ beside it where there are arrays), in one folder per group. Its
README defines their contents. An adapter is a module of this package with `run(case, report)`.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FILL = -10000.0  # the value of logits at padding, exact by the README


class Skip(Exception):  # noqa: N818, it is no error
    """Raised for a case that cannot run yet. The message is the reason."""


@dataclass(frozen=True)
class Output:
    """An entry of a case's `outputs`.

    array: its name in the NPZ, "eval.label_logits". want: the stored numbers, None where the output is None.
    stride: of the last axis, every stride-th number is stored.
    """

    array: str
    want: np.ndarray | None
    stride: int = 1

    @property
    def name(self) -> str:
        """The name without the mode: "label_logits"."""
        return self.array.split(".", 1)[-1]

    @property
    def mode(self) -> str:
        """The part before the name: "eval"."""
        return self.array.split(".", 1)[0]


@dataclass
class Case:
    """One case.

    path: its JSON. golden: the folder of all groups. data: the data kit. vocab: folder with
    bert-base-uncased/vocab.txt. tmp: an empty folder of this case. device: where the modules of groups A to D compute.
    """

    path: Path
    golden: Path
    data: Path
    vocab: Path
    tmp: Path
    device: torch.device = torch.device("cpu")

    @property
    def name(self) -> str:
        """Group and file: "A_encoder/ln_diff_size"."""
        return case_name(self.path)

    @property
    def group(self) -> str:
        return self.path.parent.name

    @cached_property
    def json(self) -> dict[str, Any]:
        """The JSON, with `<golden>` and `<data>` replaced by folders."""
        opener = gzip.open if self.path.suffix == ".gz" else open
        with opener(self.path, "rt", encoding="utf-8") as file:
            return self._resolve(json.load(file))

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays of the NPZ by name; none without one."""
        npz = self.path.with_suffix(".npz")
        if not npz.exists():
            return {}
        with np.load(npz, allow_pickle=False) as file:
            return dict(file)

    def array(self, name: str) -> np.ndarray:
        return self.arrays[name]

    @property
    def overrides(self) -> dict[str, Any]:
        """The dotted config overrides, empty where the case has none."""
        return self.json.get("config_overrides", {})

    @property
    def inputs(self) -> dict[str, np.ndarray | None]:
        """Fresh copies of the inputs by name in call order; None where None is to be passed."""
        return {i["name"]: self.array(i["array"]).copy() if "array" in i else None for i in self.json.get("inputs", [])}

    @property
    def outputs(self) -> list[Output]:
        """The listed outputs in order. An output that is not listed was not stored."""
        return [self._output(entry) for entry in self.json.get("outputs", [])]

    def _output(self, entry: Mapping[str, Any]) -> Output:
        """A stride stands in the note, or under `<output>_stride` beside the entries."""
        array = entry["array"]
        if "value" in entry and entry["value"] is None:
            return Output(array, None)
        noted = re.search(r"last axis subsampled ::(\d+)", entry.get("note", ""))
        stride = int(noted[1]) if noted else self.json.get(f"{array.split('.', 1)[-1]}_stride", 1)
        # An array that is listed and not stored differs in shape from any output.
        return Output(array, self.arrays.get(array, np.empty(0)), stride)

    def tensors(self, device: torch.device | str = "cpu") -> dict[str, Tensor | None]:
        """`inputs` as fresh tensors."""
        arrays = self.inputs.items()
        return {name: None if array is None else torch.from_numpy(array).to(device) for name, array in arrays}

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("<golden>", str(self.golden)).replace("<data>", str(self.data))
        if isinstance(value, list):
            return [self._resolve(v) for v in value]
        if isinstance(value, dict):
            return {k: self._resolve(v) for k, v in value.items()}
        return value


def case_name(path: Path) -> str:
    return f"{path.parent.name}/{path.name.removesuffix('.gz').removesuffix('.json')}"


def find_cases(golden: Path, only: str = "") -> Iterator[Path]:
    """Yields the JSON files of all cases, sorted by name. only: a part of the name, or a pattern with wildcards."""
    paths = [p for pattern in ("*/*.json", "*/*.json.gz") for p in golden.glob(pattern) if p.name != "index.json"]
    for path in sorted(paths, key=case_name):
        if only in case_name(path) or fnmatch(case_name(path), only):
            yield path


@dataclass
class Report:
    """Comparisons of one case. worst: largest error as a multiple of its tolerance. notes: printed in any case."""

    worst: float = 0.0
    worst_name: str = ""
    comparisons: int = 0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def close(self, name: str, got: Any, want: Any, atol: float = 1e-5, rtol: float = 1e-4) -> None:
        """Compare |got - want| <= atol + rtol * |want| everywhere. NaN and infinity must stand at the same places."""
        self.comparisons += 1
        a, b = _numbers(got), _numbers(want)
        if a.shape != b.shape:
            self.fail(name, f"shape {list(a.shape)}, expected {list(b.shape)}")
            return
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.where(same, 0.0, np.abs(a - b) / (atol + rtol * np.abs(b)))
        error = np.where(np.isnan(error), np.inf, error)  # a number against NaN or infinity
        worst = float(error.max(initial=0.0))
        if worst > self.worst:
            self.worst, self.worst_name = worst, name
        if worst > 1:
            at = np.unravel_index(int(error.argmax()), error.shape)
            where = f" at {[int(i) for i in at]}" if at else ""
            self.fail(name, f"{a[at]:.9g}, expected {b[at]:.9g}{where}: {worst:.3g} times the tolerance")

    def equal(self, name: str, got: Any, want: Any) -> None:
        """Compare exactly: values, and shapes of arrays and tensors (not dtypes)."""
        self.comparisons += 1
        if not any(isinstance(v, (np.ndarray, Tensor)) for v in (got, want)):
            if got != want:
                self.fail(name, f"{_short(got)}, expected {_short(want)}")
            return
        a, b = _array(got), _array(want)
        if a.shape != b.shape:
            self.fail(name, f"shape {list(a.shape)}, expected {list(b.shape)}")
        elif (different := int((a != b).sum())) > 0:
            at = np.unravel_index(int((a != b).argmax()), a.shape)
            place = [int(i) for i in at]
            self.fail(name, f"{different} of {a.size} values differ, first at {place}: {a[at]}, expected {b[at]}")

    def output(
        self, output: Output, got: Mapping[str, Any], atol: float = 1e-5, rtol: float = 1e-4, exact: bool = False
    ) -> None:
        """Compare an output with `got[output.name]`: None or absent where None is stored, else the part that is stored.

        exact: no tolerance. Fill values of -10000 have none in any case.
        """
        value, want = got.get(output.name), output.want
        if want is None:
            self.equal(f"{output.array} is None", value, None)
            return
        if value is None:
            self.fail(output.array, f"not among our outputs: {', '.join(k for k, v in got.items() if v is not None)}")
            return
        value = _array(value)
        if output.stride > 1:
            value = value[..., :: output.stride]
        if _without_ones(value) == _without_ones(want):
            value = value.reshape(want.shape)
        if exact:
            self.equal(output.array, value, want)
            return
        self.close(output.array, value, want, atol, rtol)
        if value.shape == want.shape and (want == FILL).any():
            self.equal(f"{output.array} fill", value == FILL, want == FILL)

    def include(self, title: str, other: Report) -> None:
        """Add the comparisons of another report, its failures under `title`, its worst error as a note."""
        self.comparisons += other.comparisons
        self.failures += [f"{title}: {failure}" for failure in other.failures]
        worst = f"worst error {other.worst:.2g} of the bound ({other.worst_name})" if other.worst_name else "exact"
        self.note(f"{title}: {worst}; {other.comparisons} comparisons")

    def note(self, text: str) -> None:
        """Add a line that is printed under the result, also of a case that passes."""
        self.notes.append(text)

    def fail(self, name: str, text: str) -> None:
        self.failures.append(f"{name}: {text}")


def rule_values(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight rule: the float32 values of a tensor under `key` (int64 zeros for a counter of batches)."""
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, dtype=np.int64)
    if shape == ():
        return np.array(0.5, dtype=np.float32)
    x = np.random.default_rng(zlib.crc32(key.encode("utf-8"))).standard_normal(shape, dtype=np.float64)
    return _scaled(key, last, x).astype(np.float32)


@torch.no_grad()
def fill_weights(module: nn.Module) -> dict[str, str]:
    """Set every tensor of the state dict by the weight rule. The first key of a shared tensor counts.

    Returns the aliases: later key -> first key of the same tensor.
    """
    first: dict[tuple, str] = {}
    aliases = {}
    for key, tensor in module.state_dict().items():
        storage = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and storage in first:
            aliases[key] = first[storage]
            continue
        first[storage] = key
        tensor.copy_(torch.from_numpy(rule_values(key, tuple(tensor.shape))))
    return aliases


def _scaled(key: str, last: str, x: np.ndarray) -> np.ndarray:
    """The lines of the README's table in its order, from running_var on."""
    if last == "running_var":
        return 1 + 0.1 * np.abs(x)
    if last == "running_mean":
        return 0.1 * x
    if x.ndim == 4:
        return x * np.sqrt(2 / (x.shape[1] * x.shape[2] * x.shape[3]))
    if x.ndim == 1:
        return _scaled_vector(key, last, x)
    if x.ndim != 2:
        raise ValueError(f"the weight rule has no line for {key} of shape {x.shape}")
    if "embed" in key:
        return 0.15 * x
    return x * np.sqrt((4 if "final_mlp" in key else 1) / x.shape[1])


def _scaled_vector(key: str, last: str, x: np.ndarray) -> np.ndarray:
    if last != "weight":
        return 0.02 * x
    if key.endswith("bn3.weight"):
        return 0.2 + 0.02 * x
    if "visual_ln" in key:
        return 0.3 + 0.03 * x
    return 1 + 0.1 * x


def _without_ones(array: np.ndarray) -> list[int]:
    """The shape without axes of one, some of which the reference keeps."""
    return [size for size in array.shape if size != 1]


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _numbers(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu().double()  # numpy has no bfloat16
    return _array(value).astype(np.float64)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."

"""Tensors that report cuda:0 and compute on the CPU, to observe what a program would do on a GPU.

`with FakeGpu() as gpu:` catches every operator. Factories and copies to cuda:0 return a CudaLike, whose `held` tensor
has the numbers on the CPU. PyTorch's host code (autograd, autocast, the choice of an attention kernel) takes its CUDA
paths. An operator on tensors of two devices raises DeviceMixing. `gpu.waits` and `gpu.kernels` list where the host
waits for the device and what is launched.

The process needs the CUDA runtime of tests/gpu/shim (fake_gpu.py), and backward must run in the calling thread
(`torch.autograd.set_multithreading_enabled(False)`), because a dispatch mode belongs to a thread.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from tests.gpu import attention, costs
from tests.paths import ROOT

CPU, META = torch.device("cpu"), torch.device("meta")
COPIES = {"copy_", "_to_copy", "_copy_from", "_foreach_copy_"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
# The size of the result depends on the values, so the host reads it.
SIZED_BY_VALUES = {
    *("nonzero", "masked_select", "unique_dim", "_unique", "_unique2", "unique_consecutive", "repeat_interleave"),
    "unique_dim_consecutive",
}
# Operators that accept a CPU tensor of no dimensions beside CUDA tensors.
WITH_CPU_SCALARS = {
    *("add", "sub", "mul", "div", "pow", "eq", "ne", "lt", "le", "gt", "ge", "where", "masked_fill", "fill"),
    *("minimum", "maximum", "clamp", "_foreach_mul", "_foreach_div", "_foreach_add"),
}
# Operators without a meta kernel that only change their arguments.
WITHOUT_META = {"_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_amp_foreach_non_finite_check_and_unscale_"}


class DeviceMixing(RuntimeError):  # noqa: N818 - as PyTorch's message
    """An operator got tensors of two devices. On a GPU this raises too."""


@dataclass(frozen=True)
class Wait:
    """The host waits for the device. queued: number of kernels launched since recording began."""

    phase: str
    place: str
    kind: str
    queued: int


@dataclass(frozen=True)
class Kernel:
    """The launches of one operator. moved: bytes read and written."""

    phase: str
    place: str
    name: str
    launches: int
    flops: float
    moved: int
    dtype: torch.dtype | None


class CudaLike(Tensor):
    """Reports `device` and computes with `held`, which lies on the CPU, or on meta where the values are unknown."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> CudaLike:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=device,
        )
        made.held = held
        return made

    def __tensor_flatten__(self) -> tuple[list[str], torch.device]:
        return ["held"], self.device

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], device: torch.device, size: Any, stride: Any) -> CudaLike:
        return CudaLike(inner["held"], device)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return FakeGpu.active().run(func, args, kwargs or {})

    def tolist(self) -> Any:
        FakeGpu.active().wait("copy to the host")
        return (torch.zeros(self.shape, dtype=self.dtype) if self.held.is_meta else self.held).tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A file holds it as a CPU tensor, as `torch.load(map_location="cpu")` reads a CUDA tensor."""
        return self.held.__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"CudaLike({tuple(self.shape)}, {self.dtype})"

    __str__ = __repr__


class FakeGpu(TorchDispatchMode):
    """A context in which cuda:0 exists. Adds to `waits` and `kernels` while `recording`.

    limit: floating tensors of more elements are not computed: their values are unknown and only shapes are followed.
    """

    _active: FakeGpu | None = None

    def __init__(self, limit: float = math.inf) -> None:
        super().__init__()
        self.limit = limit
        self.recording = True
        self.waits: list[Wait] = []
        self.kernels: list[Kernel] = []
        self.on_cpu: list[str] = []  # operators that computed on the CPU with more than one element
        self._undo: list[Callable[[], None]] = []

    @staticmethod
    def active() -> FakeGpu:
        if FakeGpu._active is None:
            raise RuntimeError("a CudaLike tensor outside of `with FakeGpu()`")
        return FakeGpu._active

    def __enter__(self) -> FakeGpu:
        FakeGpu._active = self
        for module in ("torch.optim.optimizer", "torch.utils._foreach_utils"):
            kinds = importlib.import_module(module)._foreach_supported_types
            if CudaLike not in kinds:
                kinds.append(CudaLike)  # as PyTorch's own tensors
        for owner in (torch.cuda, torch.cuda.Event, torch.cuda.Stream):
            original = owner.synchronize
            setattr(owner, "synchronize", self._synchronize(original))  # noqa: B010 - mypy sees a method
            self._undo.append(partial(setattr, owner, "synchronize", original))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        while self._undo:
            self._undo.pop()()
        FakeGpu._active = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def _synchronize(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def synchronize(*arguments: Any, **named: Any) -> Any:
            self.wait("synchronize")
            return original(*arguments, **named)

        return synchronize

    # ------------------------------------------------------------------------------------------ records

    def wait(self, kind: str) -> None:
        if self.recording:
            phase, place = _place()
            self.waits.append(Wait(phase, place, kind, sum(k.launches for k in self.kernels)))

    def _count(self, call: Call, args: Any, kwargs: Any, out: Any) -> None:
        cost = costs.cost(call.func, call.name, args, kwargs, out)
        if cost is not None:
            phase, place = _place()
            self.kernels.append(Kernel(phase, place, call.name, *cost))

    # ------------------------------------------------------------------------------------------ one operator

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs an operator: on the CPU where no tensor is on cuda:0, else on the inner tensors."""
        call = Call(func, args, kwargs)
        if any(t.is_cuda for t in call.plain):
            call = self._adopt(call)
        if not call.likes and not call.to_cuda:
            if self.recording and costs.is_kernel(func, call.name) and any(t.numel() > 1 for t in call.plain):
                self.on_cpu.append(f"{_place()[1]}: {call.name}")
            return func(*args, **kwargs)
        call.check_devices()
        for kind in call.waits():
            self.wait(kind)
        if call.name == "record_stream":
            return None
        unknown = self._is_unknown(call)
        if call.name == "_local_scalar_dense" and unknown:
            like = call.likes[0]
            return True if like.dtype == torch.bool else 0.0 if like.is_floating_point() else 1
        if unknown and call.name in SIZED_BY_VALUES:
            raise RuntimeError(f"{call.name} of unknown values at {_place()[1]}: raise the limit of FakeGpu")
        if unknown and call.to_cpu:
            return torch.zeros(call.likes[0].shape, dtype=call.kwargs.get("dtype") or call.likes[0].dtype)
        if unknown and call.name == "copy_" and _is_plain(call.args[0]):
            return call.args[0].zero_()
        return self._compute(call, META if unknown else CPU)

    def _adopt(self, call: Call) -> Call:
        """torch.tensor(value, device="cuda") reaches no mode before it has made a tensor on the (fake) device."""
        if call.name != "lift_fresh":
            raise DeviceMixing(f"{call.func} at {_place()[1]}: a CUDA tensor was made where this mode cannot see it")
        self.wait("torch.tensor(value, device=cuda)")
        with torch._C._DisableTorchDispatch():
            flat = [CudaLike(x.cpu(), x.device) if _is_plain(x) and x.is_cuda else x for x in call.flat]
        args, kwargs = tree_unflatten(flat, call.spec)
        return Call(call.func, args, kwargs)

    def _is_unknown(self, call: Call) -> bool:
        if call.likes:
            return any(
                t.held.is_meta or (t.held.numel() > self.limit and t.held.is_floating_point()) for t in call.likes
            )
        count, dtype = call.made()
        return count > self.limit and dtype.is_floating_point

    def _compute(self, call: Call, target: torch.device) -> Any:
        if target is META:
            call = _without_masks(call)
            for t in call.changed():
                if not t.held.is_meta and (t.held.is_floating_point() or call.name == "copy_"):
                    t.held = t.held.to(META)
        args, kwargs = call.on(target)
        if target is META and call.name in WITHOUT_META:
            out = None
        elif target is CPU and call.name in attention.CPU_KERNELS:
            out = attention.CPU_KERNELS[call.name](*args, **kwargs)
        else:
            out = call.func(*args, **kwargs)
        if self.recording:
            self._count(call, args, kwargs, out)
        if call.returns_argument:
            return call.changed_argument()
        if call.to_cpu:
            return out
        return tree_map_only(Tensor, lambda t: CudaLike(t, call.device), out)


class Call:
    """One call of an operator, with its tensors on cuda:0 (`likes`) and elsewhere (`plain`)."""

    def __init__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.name: str = func._schema.name.split("::")[-1]
        self.flat, self.spec = tree_flatten((args, kwargs))
        self.likes: list[CudaLike] = [x for x in self.flat if isinstance(x, CudaLike)]
        self.plain: list[Tensor] = [x for x in self.flat if _is_plain(x)]
        found = next((x for x in self.flat if isinstance(x, torch.device)), None)
        self.to_cuda = found is not None and found.type == "cuda"
        self.to_cpu = found is not None and found.type == "cpu"
        device = found if found is not None and self.to_cuda else self.likes[0].device if self.likes else CPU
        self.device = torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device

    @property
    def returns_argument(self) -> bool:
        """Whether the operator changes an argument and returns it, or nothing."""
        returns = self.func._schema.returns
        written = [r.alias_info is not None and r.alias_info.is_write for r in returns]
        return self.func._schema.is_mutable and all(written)

    def changed_argument(self) -> Any:
        if not self.func._schema.returns:
            return None
        written = [v for v, schema in self._arguments() if schema.alias_info and schema.alias_info.is_write]
        return written[0] if len(self.func._schema.returns) == 1 else tuple(written)

    def changed(self) -> list[CudaLike]:
        """The tensors on cuda:0 that the operator changes."""
        written = [v for v, schema in self._arguments() if schema.alias_info and schema.alias_info.is_write]
        return [x for x in tree_leaves(written) if isinstance(x, CudaLike)]

    def _arguments(self) -> Iterator[tuple[Any, Any]]:
        for i, schema in enumerate(self.func._schema.arguments):
            if i < len(self.args):
                yield self.args[i], schema
            elif schema.name in self.kwargs:
                yield self.kwargs[schema.name], schema

    def made(self) -> tuple[int, torch.dtype]:
        """Number of elements and dtype of what a factory or a copy to the device makes."""
        dtype = self.kwargs.get("dtype") or (self.plain[0].dtype if self.plain else torch.get_default_dtype())
        if self.plain:
            return self.plain[0].numel(), dtype
        size = self.args[0] if self.args and isinstance(self.args[0], Sequence) else ()
        return math.prod(size), dtype

    def on(self, target: torch.device) -> tuple[Any, dict[str, Any]]:
        """The arguments with inner tensors, all on `target`."""

        def inner(x: Any) -> Any:
            if isinstance(x, torch.device):
                return CPU if self.to_cpu else target
            x = x.held if isinstance(x, CudaLike) else x
            return x.to(META) if isinstance(x, Tensor) and target is META else x

        args, kwargs = tree_unflatten([inner(x) for x in self.flat], self.spec)
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return args, kwargs

    def check_devices(self) -> None:
        """Raises DeviceMixing where a CUDA kernel would."""
        if not (self.likes and self.plain) or self.name in COPIES or self.name == "set_":
            return
        if self.name in INDEXED and isinstance(self.args[0], CudaLike):
            return  # indices may lie on the CPU
        scalars = self.name.rstrip("_") in WITH_CPU_SCALARS
        wrong = next((t for t in self.plain if t.dim() > 0 or not scalars), None)
        if wrong is not None:
            raise DeviceMixing(f"{self.func} at {_place()[1]}: a CPU tensor {tuple(wrong.shape)} beside CUDA tensors")

    def waits(self) -> list[str]:
        """What makes the host wait for the device in this call."""
        if self.name == "_local_scalar_dense":
            return ["item"]
        if self.name == "equal" or self.name in SIZED_BY_VALUES:
            return [self.name]
        if self.name in INDEXED:
            return self._index_waits()
        if self.name == "_to_copy":
            return self._copy_waits(self.args[0], to_host=self.to_cpu)
        if self.name == "copy_" and self.likes and self.plain:
            return self._copy_waits(self.args[1], to_host=isinstance(self.args[1], CudaLike))
        return []

    def _index_waits(self) -> list[str]:
        indices = [i for i in self.args[1] if i is not None]
        masks = [i for i in indices if i.dtype in (torch.bool, torch.uint8) and isinstance(i, CudaLike)]
        host = [i for i in indices if not isinstance(i, CudaLike)]
        return ["mask as an index"] * len(masks) + ["index copied to the device"] * len(host)

    def _copy_waits(self, source: Tensor, to_host: bool) -> list[str]:
        """A copy that does not block needs page-locked memory on the host's side.

        PyTorch makes the target of `x.to("cpu", non_blocking=True)` page-locked. The host must wait for it elsewhere.
        """
        own = self.kwargs.get("non_blocking", self.args[2] if self.name == "copy_" and len(self.args) > 2 else False)
        if to_host and isinstance(source, CudaLike):
            pinned = self.name == "_to_copy" or self.args[0].is_pinned()
            return [] if own and pinned else ["copy to the host"]
        if not to_host and not isinstance(source, CudaLike) and source.numel():
            return [] if own and source.is_pinned() else ["copy to the device"]
        return []


def _is_plain(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, CudaLike)


def _without_masks(call: Call) -> Call:
    """The call with masks replaced by indices, whose number a meta kernel can follow."""
    if call.name not in INDEXED:
        return call
    indices: list[Any] = []
    for index in call.args[1]:
        inner = index.held if isinstance(index, CudaLike) else index
        if inner is not None and inner.dtype == torch.bool:
            indices += [CudaLike(i, call.device) for i in inner.nonzero().unbind(1)]
        else:
            indices.append(index)
    return Call(call.func, (call.args[0], indices, *call.args[2:]), call.kwargs)


# ---------------------------------------------------------------------------------------------- places

# Functions on the stack, innermost first, that name the phase of a step.
PHASES = {
    ("common/data/sample.py", "to"): "copy",
    ("common/precision.py", "backward"): "backward",
    ("common/precision.py", "step"): "optimizer",
    ("common/metrics.py", "update"): "metrics",
    ("common/metrics.py", "compute"): "metrics",
    ("common/train/optim.py", "measure_clipping"): "clipping",
    ("common/train/trainer.py", "_update"): "update",
}
OWN, TESTS = f"{ROOT}/", f"{ROOT}/tests/"
MODULE_CALL = "_call_impl"  # of nn.Module


def _place() -> tuple[str, str]:
    """The phase, and the innermost function of the product: "common/nn/packing.py pack".

    In backward it also names the node of PyTorch's graph.
    """
    place, phase = "", ""
    node = torch._C._current_autograd_node()
    frame = sys._getframe(1)
    while frame is not None and not (place and phase):
        code = frame.f_code
        if code.co_filename.startswith(OWN) and not code.co_filename.startswith(TESTS):
            file = code.co_filename.removeprefix(OWN)
            if not place and not file.startswith("."):
                place = f"{file} {code.co_name}"
                if node is not None and code.co_name == "backward" and file == "common/precision.py":
                    place = f"backward of {node.name()}"
            phase = phase or PHASES.get((file, code.co_name), "")
        elif code.co_name == MODULE_CALL:
            phase = phase or "forward"
        frame = frame.f_back  # type: ignore[assignment]
    return phase or "other", place or "outside of the product"

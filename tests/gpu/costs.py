"""What an operator costs on a GPU: launches, FLOPs, and bytes of memory traffic.

Launches of operators that are several kernels were counted with the shim where PyTorch launches them itself, and are
estimates, on the high side, for cuDNN and for kernels over lists of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Operators that return a view or only make a tensor: they launch nothing.
NO_KERNEL = {
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "view_as", "flatten", "expand", "permute", "transpose", "t"),
    *("select", "slice", "unsqueeze", "squeeze", "narrow", "unfold", "diagonal", "as_strided", "detach", "alias"),
    *("split", "split_with_sizes", "chunk", "unbind", "movedim", "swapaxes", "lift_fresh", "set_", "resize_"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"),
    *("_local_scalar_dense", "_fused_sdp_choice", "is_same_size", "_has_compatible_shallow_copy_type", "is_pinned"),
    *("_pin_memory", "record_stream"),
}
# Operators that write their argument without reading it.
OVERWRITE = {"zero_", "fill_", "normal_", "uniform_", "copy_"}

Cost = tuple[int, float, int, torch.dtype | None]  # launches, FLOPs, bytes, dtype of the result


def is_kernel(func: Any, name: str) -> bool:
    """Whether an operator launches anything."""
    returns = func._schema.returns
    views = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    return name not in NO_KERNEL and not (views and not func._schema.is_mutable)


def cost(func: Any, name: str, args: Any, kwargs: Any, out: Any) -> Cost | None:
    """The cost of a call; None where nothing is launched. args, kwargs, out: without CudaLike tensors."""
    if not is_kernel(func, name):
        return None
    results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
    flops = 0.0
    if func._overloadpacket in flop_registry:
        flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
    moved = _moved(func, name, args, kwargs, results)
    return _launches(name, args, out), flops, moved, results[0].dtype if results else None


def _moved(func: Any, name: str, args: Any, kwargs: Any, results: Sequence[Tensor]) -> int:
    """Bytes that are read and written."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    moved = sum(_size(t) for t in {id(t): t for t in [*tensors, *results]}.values())
    if func._schema.is_mutable and name not in OVERWRITE:
        for value, schema in zip(args, func._schema.arguments, strict=False):
            if schema.alias_info is not None and schema.alias_info.is_write:
                moved += sum(_size(t) for t in tree_leaves(value) if isinstance(t, Tensor))
    if name == "convolution" and args[2] is not None:
        moved += 2 * _size(results[0])  # PyTorch adds the bias of a cuDNN convolution in a pass of its own
    return moved


def _size(t: Tensor) -> int:
    """Bytes of a tensor. An expanded axis counts once."""
    return math.prod(n for n, stride in zip(t.shape, t.stride(), strict=True) if stride) * t.element_size()


def _launches(name: str, args: Any, out: Any) -> int:
    found = LAUNCHES.get(name, 1)
    return found(args, out) if callable(found) else found


def _chunks(tensors: Iterable[Tensor], at_a_time: int) -> int:
    """Launches of a multi-tensor kernel: each takes a number of tensors and 320 chunks of 65536 elements."""
    sizes = [t.numel() for t in tensors]
    return max(1, -(-sum(-(-n // 65536) for n in sizes) // 320), -(-len(sizes) // at_a_time))


def _indexed(args: Any, out: Any) -> int:
    return 1 + 6 * sum(i is not None and i.dtype == torch.bool for i in args[1])


LAUNCHES: dict[str, int | Callable[[Any, Any], int]] = {
    "convolution": lambda args, out: 1 if args[2] is None else 2,
    "convolution_backward": lambda args, out: sum(x is not None for x in out),
    "native_layer_norm_backward": 2,
    "native_batch_norm_backward": 2,
    "index": _indexed,
    "index_put_": 6,
    "_index_put_impl_": 6,
    "index_add": 2,
    "nonzero": 5,
    "sort": 3,
    "argsort": 3,
    "cumsum": 2,
    "unique_dim": 12,
    "embedding_dense_backward": 6,
    "_roi_align_backward": 2,
    "_scaled_dot_product_efficient_attention_backward": 2,
    "_scaled_dot_product_flash_attention_backward": 3,
    "_scaled_dot_product_cudnn_attention_backward": 3,
    "_flash_attention_backward": 3,
    "_fused_adam_": lambda args, out: _chunks(args[0], 30),
    "_fused_adamw_": lambda args, out: _chunks(args[0], 30),
    "_fused_sgd_": lambda args, out: _chunks(args[0], 50),
    "_foreach_norm": lambda args, out: _chunks(args[0], 110) + 1,
    "_foreach_add_": lambda args, out: _chunks(args[0], 50),
    "_foreach_copy_": lambda args, out: _chunks(args[0], 50),
    "_foreach_mul_": lambda args, out: _chunks(args[0], 110),
    "_foreach_div_": lambda args, out: _chunks(args[0], 110),
    "_foreach_zero_": lambda args, out: _chunks(args[0], 110),
    "_amp_foreach_non_finite_check_and_unscale_": lambda args, out: _chunks(args[0], 110),
}

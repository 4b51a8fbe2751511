"""The rule of the fast path: which modules may be replaced by a fused operation instead of being called."""

from __future__ import annotations

from typing import TypeGuard, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def is_exact(module: nn.Module, kind: type[M]) -> TypeGuard[M]:
    """Whether a call of `module` does what the class `kind` does and nothing else.

    False for a subclass or a parametrized module, for a module with hooks or with a forward of its own, and for
    parameters that are tensor subclasses (quantised, sharded). Hooks for all modules, which profilers register, do not
    count.
    """
    return (
        type(module) is kind
        and not has_hooks(module)
        and "forward" not in module.__dict__
        and all(p is None or type(p) is nn.Parameter for p in module._parameters.values())
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether a forward or backward hook is registered on this very module."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def has_parameters(module: nn.Module, *names: str) -> bool:
    """Whether the parameters exist, as parameters: tensors that others compute or share out do not count."""
    return all(module._parameters.get(name) is not None for name in names)

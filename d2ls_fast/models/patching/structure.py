"""What replacements ask of a module's structure."""

from __future__ import annotations

from typing import TypeGuard

from torch import nn


def part(module: nn.Module, path: str) -> nn.Module | None:
    """The sub-module with this dotted name, None where there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def is_linear(module: nn.Module | None) -> TypeGuard[nn.Linear]:
    """A linear layer with a bias that computes just that: no adapter, no quantisation."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward and module.bias is not None


def is_layer_norm(module: nn.Module | None, channels: int) -> TypeGuard[nn.LayerNorm]:
    """A LayerNorm over ``channels`` with weight and bias."""
    return (
        isinstance(module, nn.LayerNorm)
        and type(module).forward is nn.LayerNorm.forward
        and tuple(module.normalized_shape) == (channels,)
        and module.weight is not None
        and module.bias is not None
    )

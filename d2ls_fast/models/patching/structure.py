"""What replacements ask of a module's structure."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn


def part(module: nn.Module, path: str) -> nn.Module | None:
    """The sub-module with this dotted name, None where there is none.

    Wrappers that pass attributes on (torch.compile's, adapters') do not count as what they wrap.
    """
    found: nn.Module | None = module
    for name in path.split("."):
        found = None if found is None else found._modules.get(name)
    return found


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


def autocast_dtype(tensor: Tensor) -> torch.dtype:
    """Of a product with ``tensor``: autocast's where that is on, else the tensor's."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device) and tensor.dtype is not torch.float64:
        return torch.get_autocast_dtype(device)
    return tensor.dtype


class StandIn(nn.Module):
    """Stands for a sub-module while results are compared: gives ``result`` of its arguments, in the signature's order.

    Args:
        module: what it stands for; only its signature is read.
        result: a function of the arguments, called by position.
    """

    def __init__(self, module: nn.Module, result: Callable[..., Any]) -> None:
        super().__init__()
        self.signature = inspect.signature(module.forward)
        self.result = result

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.result(*self.signature.bind(*arguments, **named).arguments.values())

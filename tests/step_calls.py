"""Calls of dictionary_step for its tests: tensors by name, results and gradients by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d2ls_fast.backends import backend
from d2ls_fast.ops import dictionary_step
from d2ls_fast.ops.dictionary_step import Entries, Look, Step, Update

PARTS = {"update": Update, "entries": Entries, "look": Look}
ALL = ("update", "entries", "look")


class Shape(NamedTuple):
    """B, K, H, C, I."""

    batch: int
    entries: int
    heads: int
    channels: int
    inner: int


def inputs(shape: Shape, parts: tuple[str, ...] = ALL) -> dict[str, Tensor]:
    """The tensors of a call by name, the parameters as ``part.field``."""
    b, k, h, c, i = shape
    generator = torch.Generator().manual_seed(1000 * k + c)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    tensors = {"dictionary": random(b, k, c), "position": random(b, k, c)}
    if "update" in parts:
        tensors["context"] = random(b, h * k, c)
    for part in parts:
        for field in PARTS[part]._fields:
            if field == "out_weight":
                value = random(c, i) / i**0.5
            elif field.endswith("weight") and field != "norm_weight":
                value = random(i, c) / c**0.5
            else:
                value = random(c if field.startswith(("out", "norm")) else i)
            tensors[f"{part}.{field}"] = value
    return tensors


def call(tensors: dict[str, Tensor], heads: int, dtype: torch.dtype) -> Step:
    groups: dict[str, Any] = {}
    for part, group in PARTS.items():
        fields = {name.split(".")[1]: t for name, t in tensors.items() if name.startswith(part + ".")}
        groups[part] = group(**fields) if fields else None
    tokens = (tensors["dictionary"], tensors["position"], heads, dtype)
    return dictionary_step(*tokens, context=tensors.get("context"), **groups)


def run(
    tensors: dict[str, Tensor], heads: int, dtype: torch.dtype, function: Callable[..., Step] = call
) -> dict[str, Tensor]:
    """Every result that is not empty, and the gradient of every tensor."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    step = function(leaves, heads, dtype)
    generator = torch.Generator().manual_seed(7)
    results = {name: t for name, t in step._asdict().items() if t.numel() > 0 and t is not leaves["dictionary"]}
    weights = [torch.randn(t.shape, generator=generator).to(t) for t in results.values()]
    torch.autograd.backward(list(results.values()), weights)
    # PyTorch's own formulas leave out the gradient of a tensor without influence, such as position without rows.
    gradients = {f"grad {n}": torch.zeros_like(t) if t.grad is None else t.grad for n, t in leaves.items()}
    return {name: t.detach() for name, t in results.items()} | gradients


def under(name: str, *arguments: Any) -> dict[str, Tensor]:
    with backend(name):
        return run(*arguments)


def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.double() for name, t in tensors.items()}

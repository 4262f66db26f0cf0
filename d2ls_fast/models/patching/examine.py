"""Whether a replacement computes what the module computes, found out by running both."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from d2ls_fast.backends import backend
from d2ls_fast.models.patching.fast import Fast, listened_to, other_arguments, swap

TOLERANCE = 1e-9
"""Largest difference in float64, relative by norm: both sides are exact, up to the order of sums."""


def examine(module: nn.Module, replacement: type[Fast]) -> str | bool:
    """Whether the replacement can take the place of ``module``'s method: False for another kind of module, or a reason.

    After the structure the results are compared: names and shapes do not tell an activation, a norm's place or a
    scale. A copy of the module with random float64 weights on the CPU runs small inputs through both methods, once in
    evaluation and once in training mode. The module itself and the global random numbers are not touched.
    """
    found = replacement.find(module)
    if found is not True:
        return found
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a TorchScript module"
    if replacement.method in module.__dict__:
        return f"its {replacement.method} was replaced on the instance"
    reason = other_arguments(module, replacement)
    if reason:
        return reason
    names = {id(each): name for name, each in module.named_modules()}
    for part in replacement.bypassed(module):
        if listened_to(part):
            return f"its part {names[id(part)]} has hooks or a forward of its own"
    try:
        return _compare(module, replacement) or True
    except Exception as error:
        # Whatever a stranger's code raises, the module stays as it is.
        return f"it could not be tried: {type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _compare(module: nn.Module, replacement: type[Fast]) -> str | None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    for training in (False, True):
        mode = "training" if training else "evaluation"
        copied = _random_copy(module, replacement, generator).train(training)
        arguments = replacement.example(copied, random)
        with torch.no_grad(), backend("torch"), torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False):
            torch.default_generator.manual_seed(0)  # dropout in parts that stay drops the same
            expected = getattr(copied, replacement.method)(*arguments)
            swap(copied, replacement)
            torch.default_generator.manual_seed(0)
            got = getattr(copied, replacement.method)(*arguments)
        if not _same(got, expected):
            return f"in {mode} mode it computes something else"
    return None


def _random_copy(module: nn.Module, replacement: type[Fast], generator: torch.Generator) -> nn.Module:
    """A copy on the CPU whose weights are not copied but drawn: zeros would hide what they are multiplied with."""
    memo: dict[int, Any] = replacement.stand_ins(module)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} is {tensor.dtype}")
        drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        if tensor.dim() > 1:
            drawn = (drawn - 0.5) * (12 / tensor[0].numel()) ** 0.5  # keeps a product's variance
        memo.setdefault(id(tensor), nn.Parameter(drawn) if isinstance(tensor, nn.Parameter) else drawn)
    return copy.deepcopy(module, memo)


def _same(got: Any, expected: Any) -> bool:
    """Tensors of one shape and dtype and nearly the same values, in sequences and mappings of one type."""
    if isinstance(expected, Tensor):
        if not isinstance(got, Tensor) or got.shape != expected.shape or got.dtype != expected.dtype:
            return False
        return bool((got - expected).norm() <= TOLERANCE * expected.norm())
    if type(got) is not type(expected):
        return False
    if isinstance(expected, dict):
        return list(got) == list(expected) and all(_same(got[key], expected[key]) for key in expected)
    if isinstance(expected, Sequence) and not isinstance(expected, str):
        return len(got) == len(expected) and all(map(_same, got, expected))
    return bool(got == expected)

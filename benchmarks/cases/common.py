"""What all cases share: sizes, the ways a computation is run, and forward and backward cases of a module.

Baselines come from the same modules as the product: the back end ``reference`` is the released model's own order of
operations, ``torch`` the folded algebra in PyTorch; each eager and under torch.compile.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2ls_fast.backends import backend as using
from d2ls_fast.benchmarks.harness import Case, Variant

# Largest error against float64, relative to the largest value. Compiled and fused forms sum in other orders.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
HEADS, EMBED = 8, 256


@dataclass(frozen=True)
class Sizes:
    """What a bench run varies."""

    batch: int = 1
    size: int = 512
    num_classes: int = 7
    stages: int = 3
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    backbone: str = "convnext_tiny"

    @property
    def pixels(self) -> int:
        return (self.size // 4) ** 2

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"B={self.batch} {self.size}x{self.size} K={self.num_classes} L={self.stages} {dtype} {self.device}"


Compute = Callable[[], Sequence[Tensor]]


def under(backend: str, compute: Compute) -> Compute:
    def run() -> Sequence[Tensor]:
        with using(backend):
            return compute()

    return run


def standard_variants(compute: Compute) -> list[Variant]:
    """The five ways every module can be computed; the first is the baseline."""
    variants = [Variant("reference eager", under("reference", compute))]
    variants.append(Variant("reference compiled", under("reference", torch.compile(compute)), dispensable=True))
    variants.append(Variant("folded eager", under("torch", compute)))
    variants.append(Variant("folded compiled", under("torch", torch.compile(compute)), dispensable=True))
    variants.append(Variant("fused", under("auto", compute)))
    return variants


def random(generator: torch.Generator, sizes: Sizes, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator).to(sizes.device, sizes.dtype)


def forward(module: nn.Module, call: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Compute:
    def compute() -> Sequence[Tensor]:
        with torch.no_grad():
            return call(module, *inputs)

    return compute


def with_backward(module: nn.Module, call: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Compute:
    """Results, then the gradients of every input: the loss is the sum of products with fixed random tensors."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]

    def compute() -> Sequence[Tensor]:
        outputs = call(module, *leaves)
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
        torch.autograd.backward(outputs, weights)
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        for leaf in leaves:
            leaf.grad = None
        module.zero_grad(set_to_none=True)
        return [*(o.detach() for o in outputs), *gradients]

    return compute


def cases_for(
    name: str,
    sizes: Sizes,
    module: nn.Module,
    call: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    extra: Callable[[Callable[..., Compute]], list[Variant]] | None = None,
    forward_cost: tuple[int, int] = (0, 0),
    both_cost: tuple[int, int] = (0, 0),
) -> list[Case]:
    """A forward case and a forward + backward case; costs are (bytes moved, operations) of the fused form."""
    precise = copy.deepcopy(module).double()
    wide = [t.double() for t in inputs]
    cases = []
    for suffix, mode, cost in (("forward", forward, forward_cost), ("forward + backward", with_backward, both_cost)):
        variants = standard_variants(mode(module, call, inputs))
        if extra is not None:
            variants[1:1] = extra(mode)
        truth = under("reference", mode(precise, call, wide))
        cases.append(Case(f"{name} {suffix}", str(sizes), truth, variants, TOLERANCE[sizes.dtype], *cost))
    return cases

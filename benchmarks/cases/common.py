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
from d2ls_fast.backends import preferring
from d2ls_fast.benchmarks.harness import Case, Variant
from d2ls_fast.models.graphed import Graphs

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

    @property
    def precise(self) -> torch.dtype:
        """Of the definition: float64, but float32 for half precision on a GPU, whose memory large cases would fill."""
        return torch.float32 if self.device == "cuda" and self.dtype != torch.float32 else torch.float64

    def generator(self, seed: int = 0) -> torch.Generator:
        """Where the tensors are: drawing gigabytes elsewhere takes longer than all the rest."""
        return torch.Generator(self.device).manual_seed(seed)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"B={self.batch} {self.size}x{self.size} K={self.num_classes} L={self.stages} {dtype} {self.device}"


Compute = Callable[[], Sequence[Tensor]]


def under(backend: str, compute: Compute) -> Compute:
    def run() -> Sequence[Tensor]:
        with using(backend):
            return compute()

    return run


def standard_variants(compute: Compute, device: str = "cpu", inference: bool = False) -> list[Variant]:
    """The ways every module can be computed; the first is the baseline.

    On a GPU also with the kernels of Triton and of CUDA, wherever there are any, and in ``inference`` as CUDA graphs.
    """
    variants = [Variant("reference eager", under("reference", compute))]
    variants.append(Variant("reference compiled", under("reference", torch.compile(compute)), dispensable=True))
    if device == "cuda" and inference:
        variants.append(Variant("reference, CUDA graph", replayed(under("reference", compute)), dispensable=True))
    variants.append(Variant("folded eager", under("torch", compute)))
    variants.append(Variant("folded compiled", under("torch", torch.compile(compute)), dispensable=True))
    return [*variants, *fused_variants(compute, device, inference)]


def fused_variants(compute: Compute, device: str = "cpu", inference: bool = False) -> list[Variant]:
    variants = [Variant("fused", under("auto", compute))]
    if device == "cuda":
        by_kernels = {f"fused, {name}": first(name, compute) for name in ("triton", "cuda")}
        variants += [Variant(name, run, dispensable=True) for name, run in by_kernels.items()]
        if inference:
            by_kernels["fused"] = under("auto", compute)
            graphs = {f"{name}, CUDA graph": replayed(run) for name, run in by_kernels.items()}
            variants += [Variant(name, run, dispensable=True) for name, run in graphs.items()]
    return variants


def first(backend: str, compute: Compute) -> Compute:
    """``compute`` with the kernels of ``backend``, and with Triton's where it has none."""

    def run() -> Sequence[Tensor]:
        with preferring("cuda", backend, "triton"):
            return compute()

    return run


def replayed(compute: Compute, device: str = "cuda") -> Compute:
    """``compute``, captured in a CUDA graph at the first call and replayed from then on."""
    graphs = Graphs(lambda _: compute(), copied=False)
    # Its inputs are in the closure: what the graph copies in is empty.
    return lambda: graphs(torch.empty(0, device=device))


def random(generator: torch.Generator, sizes: Sizes, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, device=generator.device).to(sizes.dtype)


def forward(module: nn.Module, call: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Compute:
    def compute() -> Sequence[Tensor]:
        with torch.no_grad():
            return call(module, *inputs)

    return compute


def with_backward(module: nn.Module, call: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> Compute:
    """Results, then the gradients of every input: the loss is the sum of products with fixed random tensors."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    drawn: list[Tensor] = []

    @torch.compiler.disable
    def weights(outputs: Sequence[Tensor]) -> list[Tensor]:
        if not drawn:  # once, in the first call, which is not timed
            generator = torch.Generator(outputs[0].device).manual_seed(1)
            drawn.extend(torch.randn(o.shape, generator=generator, device=o.device).to(o) for o in outputs)
        return drawn

    def compute() -> Sequence[Tensor]:
        outputs = call(module, *leaves)
        torch.autograd.backward(outputs, weights(outputs))
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        for leaf in leaves:
            leaf.grad = None
        module.zero_grad(set_to_none=True)
        return [*(o.detach() for o in outputs), *gradients]

    return compute


def definition(
    mode: Callable[..., Compute],
    module: nn.Module,
    call: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    sizes: Sizes,
) -> Compute:
    """What is right, made when it is asked for."""

    def compute() -> Sequence[Tensor]:
        precise = copy.deepcopy(module).to(sizes.precise)
        return under("reference", mode(precise, call, [t.to(sizes.precise) for t in inputs]))()

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
    cases = []
    for suffix, mode, cost in (("forward", forward, forward_cost), ("forward + backward", with_backward, both_cost)):
        variants = standard_variants(mode(module, call, inputs), sizes.device, inference=mode is forward)
        if extra is not None:
            variants[1:1] = extra(mode)
        truth = definition(mode, module, call, inputs, sizes)
        cases.append(Case(f"{name} {suffix}", str(sizes), truth, variants, TOLERANCE[sizes.dtype], *cost))
    return cases

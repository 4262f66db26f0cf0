"""The cases of test_pyramid.py, run in a process of their own: Triton decides for its interpreter when it is imported.

Prints one JSON object: case -> quantity -> [error, allowed error].
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from accuracy import FLOOR, relative_error
from torch import Tensor

from d2ls_fast.backends import backend
from d2ls_fast.ops.fuse_pyramid import fuse_pyramid, fuse_pyramid_definition


@dataclass(frozen=True)
class Case:
    """One call; the first of the sizes is the finest."""

    batch: int
    width: int
    channels: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    scale: float = 1.0

    def inputs(self) -> list[list[Tensor]]:
        """Features, weights, biases."""
        generator = torch.Generator().manual_seed(len(self.sizes) * 1000 + self.width)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        features = [normal(self.batch, c, *size) for c, size in zip(self.channels, self.sizes, strict=True)]
        weights = [normal(self.width, c) * self.scale for c in self.channels]
        if self.channels_last:
            features = [f.to(memory_format=torch.channels_last) for f in features]
        biases = [normal(self.width) for _ in self.channels]
        return [[f.to(self.dtype) for f in features], [w.to(self.dtype) for w in weights], biases]


BF16, FP16 = torch.bfloat16, torch.float16
CASES = {
    "one pixel": Case(1, 16, (3,), ((1, 1),)),
    "one level": Case(2, 48, (5,), ((7, 5),)),
    "fp32": Case(2, 80, (6, 7, 8), ((5, 6), (3, 3), (2, 2))),
    "fp32, channels last": Case(1, 32, (6, 7), ((5, 19), (3, 10)), channels_last=True),
    "fp32, two launches": Case(1, 16, (2, 3, 4, 5, 6), ((5, 4), (3, 2), (2, 1), (5, 4), (1, 1))),
    "fp32, larger coarse level": Case(1, 16, (2, 3), ((3, 4), (5, 2))),
    "bf16": Case(3, 48, (6, 7), ((3, 35), (2, 18)), BF16),
    "bf16, model width": Case(1, 256, (12, 24), ((4, 4), (2, 2)), BF16),
    "fp16": Case(1, 32, (6, 7), ((5, 5), (3, 3)), FP16),
}


def evaluate(function: Callable[..., Tensor], case: Case, dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradients of the maps, the weights and the biases."""
    wide = torch.promote_types(dtype, torch.float32)
    leaves = [
        [t.detach().to(kind).requires_grad_() for t in tensors]
        for tensors, kind in zip(case.inputs(), (dtype, dtype, wide), strict=True)
    ]
    fused = function(*leaves)
    fused.backward(torch.randn(fused.shape, generator=torch.Generator().manual_seed(7)).to(case.dtype).to(dtype))
    return [fused.detach(), *(leaf.grad for tensors in leaves for leaf in tensors if leaf.grad is not None)]


def definition(features: list[Tensor], weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    return fuse_pyramid_definition(features, weights, torch.stack(biases).sum(0))


def kernel(case: Case) -> list[Tensor]:
    with backend("triton"):
        return evaluate(fuse_pyramid, case, case.dtype)


def compare(case: Case) -> dict[str, list[float]]:
    truth, plain = evaluate(definition, case, torch.float64), evaluate(definition, case, case.dtype)
    results = kernel(case)
    assert results[0].dtype == case.dtype and len(results) == len(truth)
    levels = range(len(case.sizes))
    names = ["fused", *(f"{name} {i}" for name in ("grad_feature", "grad_weight", "grad_bias") for i in levels)]
    return {
        name: [relative_error(result, exact), 2 * relative_error(unfused, exact) + FLOOR[case.dtype]]
        for name, result, unfused, exact in zip(names, results, plain, truth, strict=True)
    }


def repeat() -> dict[str, list[float]]:
    """Differing elements between repeats."""
    case = Case(2, 32, (6, 7), ((5, 4), (3, 2)), BF16)
    first, second = kernel(case), kernel(case)
    return {"repeats": [sum(int((a != b).sum()) for a, b in zip(first, second, strict=True)), 0]}


def main() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    report = {name: compare(case) for name, case in CASES.items()}
    extreme = compare(Case(1, 32, (6, 7), ((3, 4), (2, 2)), scale=1e30))
    print(json.dumps(report | {"repeat": repeat(), "extreme": extreme}))


if __name__ == "__main__":
    main()

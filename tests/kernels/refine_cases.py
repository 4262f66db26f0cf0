"""The cases of test_refine.py, run in a process of their own: Triton decides for its interpreter when it is imported.

Prints one JSON object: case -> quantity -> [error, allowed error].
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from accuracy import FLOOR, relative_error
from torch import Tensor

from d2ls_fast.backends import backend
from d2ls_fast.kernels import configs
from d2ls_fast.ops.refine import refine, refine_definition
from d2ls_fast.ops.refine_attend import refine_attend, refine_attend_definition

INPUTS = ("pixels", "pixel_pe", "key", "key_bias", "value", "out_bias", "norm_weight", "norm_bias", "query")
TYPED = ("pixels", "pixel_pe", "key", "value", "query")
EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """One call: shapes, dtype, and the architecture whose tiles are used; queries = 0 is refine alone."""

    batch: int
    pixels: int
    heads: int
    entries: int
    channels: int
    queries: int = 0
    dtype: torch.dtype = torch.float32
    shared_pe: bool = True
    pe_grad: bool = True
    strided: bool = False
    scale: float = 1.0
    table: str = "default"
    dictionaries: int = 1

    def inputs(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The arguments by name, and the gradients of the results."""
        generator = torch.Generator().manual_seed(self.pixels * 1000 + self.entries)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        b, n, j, q, c = self.batch, self.pixels, self.heads * self.entries, self.queries, self.channels
        g = self.dictionaries * b
        width = self.scale / c**0.5
        tensors = {
            "pixels": normal(b, n, c),
            "pixel_pe": normal(n, c) if self.shared_pe else normal(b, n, c),
            "key": normal(g, j, c) * width,
            "key_bias": normal(g, j),
            "value": normal(g, j, c),
            "out_bias": normal(c),
            "norm_weight": normal(c),
            "norm_bias": normal(c),
        }
        grads = [normal(g, n, c)]
        if q:
            tensors["query"] = normal(g, q, c) * width
            grads += [normal(g, q, c), normal(g, q)]
        if self.strided:  # a channels-first map seen pixel-major, an encoding of one image, every other row
            tensors["pixels"] = tensors["pixels"].transpose(1, 2).contiguous().transpose(1, 2)
            tensors["pixel_pe"] = tensors["pixel_pe"].expand(b, n, c)
            tensors["value"] = tensors["value"].repeat_interleave(2, 1)[:, ::2]
        for name in TYPED:
            if name in tensors:
                tensors[name] = tensors[name].to(self.dtype)
        grads[0] = grads[0].to(self.dtype)
        return tensors, grads


BF16, FP16 = torch.bfloat16, torch.float16
CASES = {
    "refine, one pixel, one entry": Case(1, 1, 1, 1, 64),
    "refine, fp32": Case(3, 113, 2, 5, 96),
    "refine, fp32, encoding per image": Case(2, 37, 2, 2, 64, shared_pe=False),
    "refine, fp32, model width": Case(1, 37, 8, 7, 256),
    "refine, fp32, views": Case(2, 37, 2, 6, 64, strided=True),
    "refine, bf16": Case(3, 113, 8, 7, 96, dtype=BF16),
    "refine, bf16, one block": Case(1, 203, 8, 7, 256, dtype=BF16, table="sm_90"),
    "refine, bf16, many entries": Case(1, 37, 4, 19, 256, dtype=BF16),
    "refine, bf16, wide": Case(1, 20, 2, 5, 272, dtype=BF16),
    "refine, fp16": Case(1, 203, 2, 19, 64, dtype=FP16),
    "refine, fp32, 65 entries": Case(1, 19, 2, 65, 64),
    "refine, fp32, 150 entries": Case(2, 9, 1, 150, 48, pe_grad=False),
    "refine, bf16, 150 entries": Case(1, 37, 2, 150, 64, dtype=BF16, table="sm_90"),
    "refine, fp32, two dictionaries": Case(2, 37, 2, 5, 64, dictionaries=2),
    "refine, fp32, three dictionaries, encoding per image": Case(2, 19, 1, 5, 64, dictionaries=3, shared_pe=False),
    "refine, bf16, two dictionaries, one block": Case(1, 37, 8, 7, 64, dtype=BF16, table="sm_90", dictionaries=2),
    "refine_attend, one pixel": Case(1, 1, 1, 1, 64, 1),
    "refine_attend, fp32": Case(3, 37, 2, 5, 96, 6),
    "refine_attend, fp32, many queries": Case(1, 37, 8, 2, 64, 70, shared_pe=False),
    "refine_attend, fp32, fused": Case(3, 113, 2, 7, 96, 6, table="fused"),
    "refine_attend, fp32, fused, encoding per image": Case(2, 37, 1, 5, 64, 6, shared_pe=False, table="fused"),
    "refine_attend, fp32, fused, blocks of rows": Case(1, 37, 4, 19, 64, 6, table="fused"),
    "refine_attend, fp32, fused, no encoding gradient": Case(2, 37, 2, 5, 64, 6, pe_grad=False, table="fused"),
    "refine_attend, bf16": Case(1, 113, 8, 7, 96, 56, dtype=BF16),
    "refine_attend, bf16, fused": Case(1, 203, 8, 7, 256, 56, dtype=BF16, table="fused"),
    "refine_attend, fp16, fused": Case(3, 37, 2, 2, 64, 4, dtype=FP16, table="fused"),
    "refine_attend, fp32, 150 entries": Case(1, 9, 1, 150, 48, 6),
    "refine_attend, bf16, fused, 65 entries": Case(1, 37, 2, 65, 64, 6, dtype=BF16, table="fused"),
    "refine_attend, fp32, two dictionaries": Case(2, 19, 2, 5, 64, 6, dictionaries=2),
    "refine_attend, fp32, three dictionaries, encoding per image": Case(
        2, 19, 2, 5, 64, 6, shared_pe=False, dictionaries=3
    ),
    "refine_attend, fp32, fused, three dictionaries": Case(2, 37, 2, 5, 64, 6, table="fused", dictionaries=3),
    "refine_attend, bf16, fused, two dictionaries, encoding per image": Case(
        2, 37, 2, 5, 64, 6, BF16, False, table="fused", dictionaries=2
    ),
}


@contextmanager
def tiles(table: str) -> Iterator[None]:
    """The interpreter with the refine tiles of an architecture, or with a fused tile for every kind."""
    default = configs.ARCHITECTURES["default"]
    chosen = configs.ARCHITECTURES["default" if table == "fused" else table]
    refine_tiles = chosen.refine
    if table == "fused":
        fused = configs.RefineTile(64, 32, 8, 1)
        refine_tiles = refine_tiles | {(k, kind): fused for k in configs.FUSED_KERNELS for kind in configs.KINDS}
    configs.ARCHITECTURES["default"] = replace(default, refine=refine_tiles, divided=chosen.divided)
    try:
        yield
    finally:
        configs.ARCHITECTURES["default"] = default


def evaluate(case: Case, dtype: torch.dtype | None) -> list[Tensor]:
    """Results and gradients: of the definition in ``dtype``, or of the Triton kernels."""
    tensors, grads = case.inputs()
    if dtype is not None:
        vectors = torch.promote_types(dtype, torch.float32)
        tensors = {name: t.to(dtype if name in TYPED else vectors) for name, t in tensors.items()}
        grads = [grads[0].to(dtype), *(g.to(vectors) for g in grads[1:])]
    leaves = {name: t.detach().requires_grad_(name != "pixel_pe" or case.pe_grad) for name, t in tensors.items()}
    if dtype is not None:
        definition = refine_attend_definition if case.queries else refine_definition
        results = definition(*leaves.values(), case.heads, EPS)  # type: ignore[operator]
    else:
        with backend("triton"), tiles(case.table):
            operator = refine_attend if case.queries else refine
            results = operator(*leaves.values(), case.heads, EPS)  # type: ignore[operator]
    results = results if isinstance(results, tuple) else (results,)
    with tiles(case.table):
        torch.autograd.backward(results, grads)
    gradients = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
    for gradient, leaf in zip(gradients, (t for t in leaves.values() if t.requires_grad), strict=True):
        assert gradient.shape == leaf.shape and gradient.dtype == leaf.dtype
    return [*(result.detach() for result in results), *gradients]


def names(case: Case) -> list[str]:
    results = ["refined", "context", "log_sum_exp"] if case.queries else ["refined"]
    inputs = INPUTS if case.queries else INPUTS[:-1]
    return results + [f"grad_{name}" for name in inputs if name != "pixel_pe" or case.pe_grad]


def compare(case: Case) -> dict[str, list[float]]:
    truth, plain, results = evaluate(case, torch.float64), evaluate(case, case.dtype), evaluate(case, None)
    assert results[0].dtype == case.dtype
    return {
        name: [relative_error(result, exact), 2 * relative_error(unfused, exact) + FLOOR[case.dtype]]
        for name, result, unfused, exact in zip(names(case), results, plain, truth, strict=True)
    }


def repeat() -> dict[str, list[float]]:
    """Differing elements between repeats."""
    case = Case(2, 203, 2, 5, 64, 10, dtype=BF16, table="fused", dictionaries=2)
    first, second = evaluate(case, None), evaluate(case, None)
    return {"repeats": [sum(int((a != b).sum()) for a, b in zip(first, second, strict=True)), 0]}


def extreme() -> dict[str, list[float]]:
    """Scores beyond +-1e4: one entry of a head and one pixel take all; inf or NaN would count as an infinite error."""
    quantities: dict[str, list[float]] = {}
    for dtype in (torch.float32, BF16):
        case = Case(1, 113, 2, 5, 64, 5, dtype=dtype, scale=8e3, table="fused")
        tensors, _ = case.inputs()
        y = (tensors["pixels"] + tensors["pixel_pe"]).float()
        assert (y @ tensors["key"].float().transpose(-1, -2)).abs().max() > 1e4
        # The truth starts from x' as the kernels round it: unrounded, other pixels win.
        for name, result in zip(names(case), evaluate(case, None), strict=True):
            quantities[f"{dtype} {name} is finite"] = [float((~torch.isfinite(result)).sum()), 0]
        if dtype == torch.float32:
            quantities |= {f"{dtype} {name}": value for name, value in compare(case).items()}
    return quantities


def main() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    report = {name: compare(case) for name, case in CASES.items()}
    print(json.dumps(report | {"repeat": repeat(), "extreme": extreme()}))


if __name__ == "__main__":
    main()

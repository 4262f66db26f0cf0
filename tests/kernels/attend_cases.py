"""The cases of test_attend.py, run in a process of their own: Triton decides for its interpreter when it is imported.

Prints one JSON object: case -> quantity -> [error, allowed error].
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from accuracy import FLOOR, relative_error
from torch import Tensor

from d2ls_fast.kernels.attend import attend_backward, attend_forward

NAMES = ("context", "log_sum_exp", "grad_pixels", "grad_pe", "grad_query")


@dataclass(frozen=True)
class Case:
    """One call: shapes, dtype and what is special about it."""

    batch: int
    pixels: int
    rows: int
    channels: int
    dtype: torch.dtype = torch.float32
    shared_pe: bool = True
    scale: float = 1.0
    strided: bool = False
    tf32: bool = False

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.pixels * 1000 + self.rows)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        b, n, j, c = self.batch, self.pixels, self.rows, self.channels
        x, q = normal(b, n, c), normal(b, j, c) * (self.scale / c**0.5)
        pe = normal(n, c) if self.shared_pe else normal(b, n, c)
        if self.strided:  # a channels-first map seen pixel-major, every other row of a query, an encoding of one image
            x, q = x.transpose(1, 2).contiguous().transpose(1, 2), q.repeat_interleave(2, 1)[:, ::2]
            pe = pe.expand(b, n, c)
        return x.to(self.dtype), pe.to(self.dtype), q.to(self.dtype), normal(b, j, c), normal(b, j)


CASES = {
    "one pixel, one row": Case(1, 1, 1, 64),
    "fp32": Case(3, 37, 5, 96),
    "fp32, encoding per image": Case(2, 37, 5, 64, shared_pe=False),
    "fp32, model width": Case(1, 113, 56, 256),
    "fp32, blocks of rows": Case(1, 37, 70, 64),
    "fp32, many chunks": Case(1, 1023, 5, 64),
    "fp32, widest": Case(1, 20, 3, 1024),
    "fp32, TF32 allowed": Case(1, 50, 5, 64, tf32=True),
    "fp32, views": Case(2, 37, 6, 64, strided=True),
    "bf16": Case(3, 113, 5, 96, torch.bfloat16),
    "bf16, encoding per image": Case(2, 37, 5, 64, torch.bfloat16, shared_pe=False),
    "bf16, model width": Case(1, 203, 56, 256, torch.bfloat16),
    "bf16, blocks of rows": Case(1, 113, 150, 64, torch.bfloat16),
    "bf16, many chunks": Case(1, 1023, 5, 64, torch.bfloat16),
    "bf16, wide": Case(1, 20, 70, 272, torch.bfloat16),
    "fp16": Case(3, 203, 5, 96, torch.float16),
    "fp16, model width": Case(1, 113, 56, 256, torch.float16),
    "fp16, blocks of rows": Case(1, 113, 70, 16, torch.float16),
}


def definition(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Plain PyTorch: softmax over the pixels of q . (x + pe), times x, and the gradients by autograd."""
    x, pe, q, grad_context, grad_lse = case.inputs()
    x, pe, q = (tensor.detach().to(dtype).requires_grad_() for tensor in (x, pe, q))
    scores = q @ (x + pe).transpose(-1, -2)
    context, lse = scores.softmax(-1) @ x, scores.logsumexp(-1)
    torch.autograd.backward([context, lse], [grad_context.to(dtype), grad_lse.to(dtype)])
    gradients = [tensor.grad for tensor in (x, pe, q) if tensor.grad is not None]
    return [context.detach(), lse.detach(), *gradients]


def kernel(case: Case, need_pe_grad: bool = True) -> list[Tensor]:
    """The Triton launchers on the same inputs."""
    x, pe, q, grad_context, grad_lse = case.inputs()
    context, lse = attend_forward(x, pe, q)
    gradients = attend_backward(x, pe, q, context, lse, grad_context, grad_lse, need_pe_grad)
    return [context, lse, *(gradient for gradient in gradients if gradient is not None)]


def compare(case: Case) -> dict[str, list[float]]:
    torch.backends.cuda.matmul.fp32_precision = "tf32" if case.tf32 else "ieee"
    truth, plain, results = definition(case, torch.float64), definition(case, case.dtype), kernel(case)
    x, pe, q, _, _ = case.inputs()
    for result, like in zip(results[2:], (x, pe, q), strict=True):
        assert result.shape == like.shape and result.dtype == like.dtype
    assert results[0].dtype == results[1].dtype == torch.float32
    return {
        name: [relative_error(result, exact), 2 * relative_error(unfused, exact) + FLOOR[case.dtype]]
        for name, result, unfused, exact in zip(NAMES, results, plain, truth, strict=True)
    }


def repeat() -> dict[str, list[float]]:
    """Differing elements between repeats; the encoding's gradient must not change the pixels' beyond rounding."""
    case = Case(2, 203, 20, 64, torch.bfloat16)
    first, second = kernel(case), kernel(case)
    differing = sum(int((a != b).sum()) for a, b in zip(first, second, strict=True))
    without = kernel(case, need_pe_grad=False)
    assert len(without) == 4
    return {"repeats": [differing, 0], "without grad_pe": [relative_error(without[2], first[2]), 4e-3]}


def extreme() -> dict[str, list[float]]:
    """Scores beyond +-1e4: one pixel takes all; inf or NaN would count as an infinite error."""
    quantities: dict[str, list[float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        case = Case(1, 113, 5, 64, dtype, scale=4e3)
        x, pe, q, _, _ = case.inputs()
        assert (q.float() @ (x + pe).float().transpose(-1, -2)).abs().max() > 1e4
        truth = definition(case, torch.float64)
        for name, result, exact in zip(NAMES, kernel(case), truth, strict=True):
            quantities[f"{dtype} {name}"] = [relative_error(result, exact), 1e-4 if dtype == torch.float32 else 3e-2]
    return quantities


def main() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    report = {name: compare(case) for name, case in CASES.items()}
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    report |= {"repeat": repeat(), "extreme": extreme()}
    print(json.dumps(report))


if __name__ == "__main__":
    main()

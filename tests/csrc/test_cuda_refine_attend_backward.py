"""refine_attend's backward by the CUDA kernels, in their emulator, for every kind of GPU."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
import torch
from accuracy import assert_accurate
from cuda_emulator import Device
from cuda_emulator_backward import refine_attend_backward
from torch import Tensor

from d2ls_fast.ops.refine_attend import refine_attend_definition

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
GPUS = {"sm_80": 8, "sm_90a": 9, "sm_100": 10}
TYPED = ("pixels", "pixel_pe", "key", "value", "query")
EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """One call: shapes, dtype and what is special about it."""

    images: int
    pixels: int
    heads: int
    entries: int
    channels: int
    queries: int
    dtype: torch.dtype = BF16
    shared_pe: bool = True
    dictionaries: int = 1

    @functools.cached_property
    def tensors(self) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """The arguments by name, and the gradients of the three results."""
        generator = torch.Generator().manual_seed(self.pixels * 1000 + self.entries)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        b, n, j, c = self.images, self.pixels, self.heads * self.entries, self.channels
        g = self.dictionaries * b
        arguments = {
            "pixels": normal(b, n, c),
            "pixel_pe": normal(n, c) if self.shared_pe else normal(b, n, c),
            "key": normal(g, j, c) / c**0.5,
            "key_bias": normal(g, j),
            "value": normal(g, j, c),
            **{name: normal(c) for name in ("out_bias", "norm_weight", "norm_bias")},
            "query": normal(g, self.queries, c) / c**0.5,
        }
        arguments |= {name: arguments[name].to(self.dtype) for name in TYPED}
        # Of the size of what attend sends to each pixel, so that neither part hides the other.
        grads = normal(g, n, c) / n, normal(g, self.queries, c), normal(g, self.queries)
        return arguments, (grads[0].to(self.dtype), grads[1].to(self.dtype).float(), grads[2])

    def defined(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The gradients by autograd through the definition in a precision."""
        arguments, grads = self.tensors
        vectors = torch.promote_types(dtype, torch.float32)
        inputs = {n: t.to(dtype if n in TYPED else vectors).requires_grad_() for n, t in arguments.items()}
        outputs = refine_attend_definition(**inputs, num_heads=self.heads, eps=EPS)
        wanted = [grad.to(output.dtype) for grad, output in zip(grads, outputs, strict=True)]
        gradients = torch.autograd.grad(outputs, list(inputs.values()), wanted)
        return dict(zip(inputs, gradients, strict=True))

    def emulated(self, device: Device, **options: bool) -> dict[str, Tensor]:
        arguments, (grad, grad_context, grad_lse) = self.tensors
        exact = {name: tensor.float() for name, tensor in arguments.items()}
        _, context, log_sum_exp = refine_attend_definition(**exact, num_heads=self.heads, eps=EPS)
        delta = (grad_context * context).sum(-1) - grad_lse
        grad_context = grad_context.to(self.dtype)
        return refine_attend_backward(
            arguments, log_sum_exp, grad, grad_context, delta, self.heads, EPS, device, **options
        )

    def check(self, device: Device) -> None:
        results, plain, truth = self.emulated(device), self.defined(self.dtype), self.defined(torch.float64)
        names = list(truth)
        assert_accurate(names, *([which[n] for n in names] for which in (results, plain, truth)), self.dtype)


CASES = {
    "one pixel": Case(1, 1, 1, 1, 16, 1),
    "bf16": Case(2, 113, 8, 7, 96, 56, shared_pe=False),
    "bf16, model width": Case(1, 75, 8, 7, 256, 56),
    "bf16, three dictionaries": Case(2, 75, 2, 5, 64, 6, dictionaries=3),
    "bf16, three dictionaries, encodings of their own": Case(2, 20, 2, 5, 64, 6, dictionaries=3, shared_pe=False),
    "bf16, blocks of rows": Case(1, 75, 8, 9, 64, 70),
    "fp16": Case(1, 75, 3, 8, 48, 24, FP16),
    "fp32": Case(2, 70, 2, 7, 64, 14, FP32),
}


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("name", CASES)
def test_against_the_definition(name: str, gpu: str) -> None:
    CASES[name].check(Device(GPUS[gpu]))


@pytest.mark.parametrize("gpu", GPUS)
def test_any_order_of_events_gives_the_same_bits(gpu: str) -> None:
    case = Case(1, 140, 2, 7, 64, 20)
    orders = [Device(GPUS[gpu], 1, early, descending) for early in (False, True) for descending in (False, True)]
    first, *others = (case.emulated(device) for device in orders)
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_without_the_encoding() -> None:
    case = Case(1, 75, 2, 7, 64, 14)
    without, gradients = case.emulated(Device(9), need_pe_grad=False), case.emulated(Device(9))
    assert without.pop("pixel_pe").isnan().all()
    assert all(torch.equal(tensor, gradients[name]) for name, tensor in without.items())

"""refine's backward by the CUDA kernels, in their emulator, for every kind of GPU."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import pytest
import torch
from accuracy import assert_accurate
from cuda_emulator import Device
from cuda_emulator_backward import refine_backward
from torch import Tensor

from d2ls_fast.ops.refine import refine_definition

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
GPUS = {"sm_80": 8, "sm_90a": 9, "sm_100": 10}
TYPED = ("pixels", "pixel_pe", "key", "value")
EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """One call: shapes, dtype and what is special about it."""

    images: int
    pixels: int
    heads: int
    entries: int
    channels: int
    dtype: torch.dtype = BF16
    shared_pe: bool = True
    dictionaries: int = 1
    scale: float = 1.0

    @functools.cached_property
    def tensors(self) -> tuple[dict[str, Tensor], Tensor]:
        """The arguments by name, and the gradient of the result."""
        generator = torch.Generator().manual_seed(self.pixels * 1000 + self.entries)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        b, n, j, c = self.images, self.pixels, self.heads * self.entries, self.channels
        g = self.dictionaries * b
        arguments = {
            "pixels": normal(b, n, c) + 1,
            "pixel_pe": normal(n, c) if self.shared_pe else normal(b, n, c),
            "key": normal(g, j, c) * self.scale / c**0.5,
            "value": normal(g, j, c),
            "key_bias": normal(g, j),
            **{name: normal(c) for name in ("out_bias", "norm_weight", "norm_bias")},
        }
        arguments |= {name: arguments[name].to(self.dtype) for name in TYPED}
        return arguments, normal(g, n, c).to(self.dtype)

    def defined(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The gradients by autograd through the definition in a precision."""
        arguments, grad = self.tensors
        vectors = torch.promote_types(dtype, torch.float32)
        inputs = {n: t.to(dtype if n in TYPED else vectors).requires_grad_() for n, t in arguments.items()}
        refined = refine_definition(**inputs, num_heads=self.heads, eps=EPS)
        gradients = torch.autograd.grad(refined, list(inputs.values()), grad.to(refined.dtype))
        return dict(zip(inputs, gradients, strict=True))

    def emulated(self, device: Device, **options: bool) -> dict[str, Tensor]:
        return refine_backward(*self.tensors, self.heads, EPS, device, **options)

    def check(self, device: Device, **options: bool) -> dict[str, Tensor]:
        results = self.emulated(device, **options)
        # With TF32 the factors of the products have ten bits of mantissa, as float16's.
        plain, truth = self.defined(FP16 if options.get("tf32") else self.dtype), self.defined(torch.float64)
        names = list(truth)
        assert_accurate(names, *([which[n] for n in names] for which in (results, plain, truth)), self.dtype)
        return results


CASES = {
    "one pixel": Case(1, 1, 1, 1, 16),
    "bf16": Case(2, 113, 8, 7, 96, shared_pe=False),
    "bf16, model width": Case(1, 150, 8, 7, 256),
    "bf16, 12 entries": Case(1, 40, 4, 12, 64),
    "bf16, 30 entries": Case(1, 20, 2, 30, 48),
    "bf16, 64 entries": Case(1, 20, 1, 64, 48),
    "bf16, three dictionaries": Case(2, 75, 2, 5, 64, dictionaries=3, shared_pe=False),
    "fp16": Case(2, 70, 3, 8, 64, FP16, dictionaries=2),
    "fp16, model width": Case(1, 70, 8, 7, 256, FP16),
    "fp32": Case(2, 75, 2, 7, 64, FP32),
    "fp32, model width": Case(1, 40, 4, 7, 256, FP32, shared_pe=False),
    "bf16, 19 entries, blocks of rows": Case(1, 75, 4, 19, 64),
    "fp32, blocks of rows": Case(1, 40, 8, 7, 64, FP32),
    "fp32, model width, blocks of rows": Case(1, 35, 8, 7, 256, FP32),
}


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("name", CASES)
def test_against_the_definition(name: str, gpu: str) -> None:
    CASES[name].check(Device(GPUS[gpu]))


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize("pixels", [60, 129, 260])
def test_any_order_of_events_gives_the_same_bits(pixels: int, dtype: torch.dtype, gpu: str) -> None:
    """Few tiles and many: each buffer is used never, once, and in every role."""
    case = Case(1, pixels, 2, 7, 64, dtype)
    orders = [Device(GPUS[gpu], 1, early, descending) for early in (False, True) for descending in (False, True)]
    first, *others = (case.emulated(device) for device in orders)
    case.check(orders[0])
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_chunks_are_added_up() -> None:
    """More multiprocessors, more chunks: sums in another order, the pixels' gradient the same."""
    case = Case(1, 300, 2, 7, 64, FP32)
    one, many = (case.check(Device(9, multiprocessors)) for multiprocessors in (1, 132))
    assert torch.equal(one["pixels"], many["pixels"]) and not torch.equal(one["key"], many["key"])


def test_without_the_encoding() -> None:
    case = Case(2, 75, 2, 7, 64, dictionaries=2)
    without, gradients = case.emulated(Device(9), need_pe_grad=False), case.emulated(Device(9))
    assert without.pop("pixel_pe").isnan().all()
    assert all(torch.equal(tensor, gradients[name]) for name, tensor in without.items())


@pytest.mark.parametrize("gpu", GPUS)
def test_tf32_where_allowed(gpu: str) -> None:
    case = Case(1, 50, 2, 7, 64, FP32)
    rounded, exact = case.check(Device(GPUS[gpu]), tf32=True), case.check(Device(GPUS[gpu]))
    assert not torch.equal(rounded["key"], exact["key"])


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_extreme_scores(dtype: torch.dtype) -> None:
    """Beyond +-1e4: one entry of a head takes all, and nothing overflows."""
    case = replace(Case(1, 75, 2, 5, 64, scale=8e3), dtype=dtype)
    assert all(torch.isfinite(tensor).all() for tensor in case.emulated(Device(9)).values())

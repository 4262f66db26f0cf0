"""attend's backward by the CUDA kernels, in their emulator, for every kind of GPU."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import pytest
import torch
from accuracy import assert_accurate
from cuda_emulator import Device
from cuda_emulator_backward import attend_backward
from torch import Tensor

from d2ls_fast.ops.attend import attend_definition

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAMES = ("grad_pixels", "grad_pe", "grad_query")
GPUS = {"sm_80": 8, "sm_90a": 9, "sm_100": 10}


@dataclass(frozen=True)
class Case:
    """One call: shapes, dtype and what is special about it."""

    batch: int
    pixels: int
    rows: int
    channels: int
    dtype: torch.dtype = BF16
    shared: bool = True
    scale: float = 1.0
    shift: float = 0.0

    @functools.cached_property
    def tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Pixels, encoding and query; the gradients of context and log-sum-exp."""
        generator = torch.Generator().manual_seed(self.pixels * 1000 + self.rows)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        b, n, j, c = self.batch, self.pixels, self.rows, self.channels
        inputs = [
            normal(b, n, c) + self.shift,
            normal(n, c) if self.shared else normal(b, n, c),
            normal(b, j, c) * self.scale / c**0.5 - self.shift,
        ]
        return [t.to(self.dtype) for t in inputs], [normal(b, j, c).to(self.dtype).float(), normal(b, j)]

    def defined(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The gradients by autograd through the definition in a precision."""
        inputs = [t.to(dtype).requires_grad_() for t in self.tensors[0]]
        outputs = attend_definition(*inputs)
        grads = [grad.to(output.dtype) for grad, output in zip(self.tensors[1], outputs, strict=True)]
        return torch.autograd.grad(outputs, inputs, grads)

    def emulated(self, device: Device, **options: bool) -> tuple[Tensor, ...]:
        x, pe, query = self.tensors[0]
        grad, grad_lse = self.tensors[1]
        context, log_sum_exp = attend_definition(*(t.float() for t in (x, pe, query)))
        delta = (grad * context).sum(-1) - grad_lse
        return attend_backward(x, pe, query, log_sum_exp, grad.to(x.dtype), delta, device, **options)

    def check(self, device: Device, **options: bool) -> tuple[Tensor, ...]:
        results = self.emulated(device, **options)
        # With TF32 the factors of the products have ten bits of mantissa, as float16's.
        plain = self.defined(FP16 if options.get("tf32") else self.dtype)
        assert_accurate(NAMES, results, plain, self.defined(torch.float64), self.dtype)
        return results


CASES = {
    "one pixel": Case(1, 1, 1, 16),
    "bf16": Case(2, 113, 5, 96, shared=False),
    "bf16, model width": Case(1, 150, 56, 256),
    "bf16, blocks of rows": Case(2, 37, 70, 64),
    "fp16": Case(3, 75, 19, 48, FP16),
    "fp16, model width": Case(1, 70, 56, 256, FP16),
    "fp32": Case(2, 75, 7, 64, FP32),
    "fp32, model width, blocks of rows": Case(1, 40, 40, 256, FP32, shared=False),
}


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("name", CASES)
def test_against_the_definition(name: str, gpu: str) -> None:
    CASES[name].check(Device(GPUS[gpu]))


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize("pixels", [60, 129, 260])
def test_any_order_of_events_gives_the_same_bits(pixels: int, dtype: torch.dtype, gpu: str) -> None:
    """Few tiles and many: each stage of memory is used never, once, and again."""
    case = Case(1, pixels, 20, 64, dtype)
    orders = [Device(GPUS[gpu], 1, early, descending) for early in (False, True) for descending in (False, True)]
    first, *others = (case.emulated(device) for device in orders)
    case.check(orders[0])
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_chunks_are_added_up() -> None:
    """More multiprocessors, more chunks: the query's gradient in another order, the pixels' the same."""
    case = Case(1, 300, 9, 64, FP32)
    one, many = (case.check(Device(9, multiprocessors)) for multiprocessors in (1, 132))
    assert torch.equal(one[0], many[0]) and not torch.equal(one[2], many[2])


def test_what_is_to_be_added_is_added() -> None:
    case = Case(1, 75, 70, 64, FP32)
    x, pe, query = case.tensors[0]
    grad, delta = case.tensors[1]
    log_sum_exp = attend_definition(x, pe, query)[1]
    alone, more = (
        attend_backward(x, pe, query, log_sum_exp, grad, delta, Device(9), add=add)[0]
        for add in (None, torch.ones_like(x))
    )
    torch.testing.assert_close(more, alone + 1)


def test_without_the_encoding() -> None:
    case = Case(1, 75, 19, 64)
    grad_pixels, grad_pe, _ = case.emulated(Device(9), need_pe_grad=False)
    assert torch.equal(grad_pixels, case.emulated(Device(9))[0])
    assert grad_pe.isnan().all()


@pytest.mark.parametrize("gpu", GPUS)
def test_tf32_where_allowed(gpu: str) -> None:
    case = Case(1, 50, 5, 64, FP32)
    assert not torch.equal(case.check(Device(GPUS[gpu]), tf32=True)[0], case.check(Device(GPUS[gpu]))[0])


def test_extreme_scores() -> None:
    """Beyond +-1e3: one pixel takes all, and nothing overflows."""
    case = Case(1, 113, 5, 64, FP32, scale=1e3)
    assert all(torch.isfinite(t).all() for t in case.emulated(Device(9)))
    assert all(torch.isfinite(t).all() for t in replace(case, dtype=BF16).emulated(Device(9)))


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_places_beyond_the_image_do_not_count(dtype: torch.dtype, gpu: str) -> None:
    """Their scores are 0; where all others are below -200, their exponential overflows."""
    case = Case(1, 75, 5, 64, dtype, shift=2.0)
    assert all(torch.isfinite(t).all() for t in case.emulated(Device(GPUS[gpu])))

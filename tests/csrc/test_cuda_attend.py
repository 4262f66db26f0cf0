"""attend by the CUDA kernels, in their emulator, for every kind of GPU."""

from __future__ import annotations

import pytest
import torch
from accuracy import assert_accurate
from cuda_emulator import Device, attend
from torch import Tensor

from d2ls_fast.ops.attend import attend_definition

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAMES = ("context", "log_sum_exp")
GPUS = {"sm_80": 8, "sm_90a": 9, "sm_100": 10}


def inputs(
    batch: int, pixels: int, rows: int, channels: int, dtype: torch.dtype, shared: bool = True, scale: float = 1.0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(pixels * 1000 + rows)
    pe_shape = (pixels, channels) if shared else (batch, pixels, channels)
    x, pe, q = (
        torch.randn(shape, generator=generator)
        for shape in ((batch, pixels, channels), pe_shape, (batch, rows, channels))
    )
    return [x.to(dtype), pe.to(dtype), (q * scale / channels**0.5).to(dtype)]


def check(tensors: list[Tensor], device: Device, tf32: bool = False) -> tuple[Tensor, Tensor]:
    results = attend(*tensors, device, tf32)
    truth = attend_definition(*(t.double() for t in tensors))
    plain = attend_definition(*tensors)
    if tf32:  # ten bits of mantissa in the factors of both products, as float16 has
        plain = attend_definition(*(t.half() for t in tensors))
    assert_accurate(NAMES, results, plain, truth, tensors[0].dtype)
    return results


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((1, 1, 1, 16), BF16, {}),
        ((2, 113, 5, 96), BF16, {"shared": False}),
        ((1, 203, 56, 256), BF16, {}),
        ((1, 37, 70, 64), BF16, {}),
        ((2, 131, 19, 48), FP16, {}),
        ((1, 75, 56, 256), FP16, {"shared": False}),
        ((2, 75, 7, 64), FP32, {}),
        ((1, 40, 20, 256), FP32, {"shared": False}),
    ],
    ids=str,
)
def test_against_the_definition(
    shape: tuple[int, int, int, int], dtype: torch.dtype, options: dict[str, bool], gpu: str
) -> None:
    check(inputs(*shape, dtype, **options), Device(GPUS[gpu]))


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_any_order_of_events_gives_the_same_bits(dtype: torch.dtype, gpu: str) -> None:
    tensors = inputs(1, 300, 20, 64, dtype)
    orders = [Device(GPUS[gpu], 1, early, descending) for early in (False, True) for descending in (False, True)]
    first, *others = (attend(*tensors, device) for device in orders)
    assert torch.isfinite(first[0]).all()
    for other in others:
        assert torch.equal(first[0], other[0]) and torch.equal(first[1], other[1])


def test_chunks_are_merged() -> None:
    """More multiprocessors, more chunks: other roundings, the same result."""
    tensors = inputs(1, 1023, 9, 64, BF16)
    one, many = (check(tensors, Device(9, multiprocessors)) for multiprocessors in (1, 132))
    assert not torch.equal(one[0], many[0])


@pytest.mark.parametrize("gpu", GPUS)
def test_tf32_where_allowed(gpu: str) -> None:
    tensors = inputs(1, 50, 5, 64, FP32)
    rounded, exact = check(tensors, Device(GPUS[gpu]), tf32=True), check(tensors, Device(GPUS[gpu]))
    assert not torch.equal(rounded[0], exact[0])


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_extreme_scores(dtype: torch.dtype) -> None:
    """Beyond +-1e4: one pixel takes all, and nothing overflows."""
    tensors = inputs(1, 113, 5, 64, dtype, scale=4e3)
    results, truth = attend(*tensors, Device(9)), attend_definition(*(t.double() for t in tensors))
    for result, exact in zip(results, truth, strict=True):
        torch.testing.assert_close(result.double(), exact, rtol=3e-2 if dtype == BF16 else 1e-4, atol=3e-2)


def test_what_the_kernels_do_not_take_is_refused() -> None:
    with pytest.raises(RuntimeError, match="multiples of 16 up to 256, got 20"):
        attend(*inputs(1, 10, 2, 20, BF16), Device(9))
    with pytest.raises(RuntimeError, match="compute capability 8, 9 and 10, this device has 12"):
        attend(*inputs(1, 10, 2, 16, BF16), Device(12))

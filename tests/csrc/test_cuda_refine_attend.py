"""refine_attend by the CUDA kernels, in their emulator: in one pass on Hopper and later, otherwise in two."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from accuracy import assert_accurate
from cuda_emulator import Device, refine_attend
from torch import Tensor

from d2ls_fast.ops.refine_attend import refine_attend_definition

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
GPUS = {"sm_80": 8, "sm_90a": 9, "sm_100": 10}
TYPED = ("pixels", "pixel_pe", "key", "value", "query")
NAMES = ("refined", "context", "log_sum_exp")
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

    def inputs(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.pixels * 1000 + self.entries)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        b, n, j, c = self.images, self.pixels, self.heads * self.entries, self.channels
        g = self.dictionaries * b
        tensors = {
            "pixels": normal(b, n, c),
            "pixel_pe": normal(n, c) if self.shared_pe else normal(b, n, c),
            "key": normal(g, j, c) / c**0.5,
            "key_bias": normal(g, j),
            "value": normal(g, j, c),
            **{name: normal(c) for name in ("out_bias", "norm_weight", "norm_bias")},
            "query": normal(g, self.queries, c) / c**0.5,
        }
        tensors |= {name: tensors[name].to(self.dtype) for name in TYPED}
        if dtype is not None:
            vectors = torch.promote_types(dtype, torch.float32)
            tensors = {name: t.to(dtype if name in TYPED else vectors) for name, t in tensors.items()}
        return tensors

    def defined(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        return refine_attend_definition(**self.inputs(dtype), num_heads=self.heads, eps=EPS)

    def emulated(self, device: Device) -> tuple[Tensor, Tensor, Tensor]:
        return refine_attend(self.inputs(), self.heads, EPS, device)

    def check(self, device: Device) -> None:
        results = self.emulated(device)
        assert_accurate(NAMES, results, self.defined(self.dtype), self.defined(torch.float64), self.dtype)


CASES = {
    "one pixel": Case(1, 1, 1, 1, 16, 1),
    "bf16": Case(2, 133, 8, 7, 96, 56, shared_pe=False),
    "bf16, model width": Case(1, 300, 8, 7, 256, 56),
    "bf16, three dictionaries": Case(2, 75, 2, 5, 64, 6, dictionaries=3, shared_pe=False),
    "fp16": Case(1, 203, 3, 8, 128, 24, FP16),
    "bf16, too many entries for one pass": Case(1, 75, 8, 9, 64, 5),
    "bf16, too many queries for one pass": Case(1, 75, 2, 7, 64, 70),
    "fp32": Case(1, 70, 2, 7, 64, 14, FP32),
}


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("name", CASES)
def test_against_the_definition(name: str, gpu: str) -> None:
    CASES[name].check(Device(GPUS[gpu]))


@pytest.mark.parametrize("gpu", ["sm_90a", "sm_100"])
@pytest.mark.parametrize("pixels", [60, 128, 129, 450])
def test_any_order_of_events_gives_the_same_bits(pixels: int, gpu: str) -> None:
    """One tile, two and more: each stage of memory is used never, once, and again."""
    case = Case(1, pixels, 2, 7, 64, 20)
    orders = [Device(GPUS[gpu], 1, early, descending) for early in (False, True) for descending in (False, True)]
    first, *others = (case.emulated(device) for device in orders)
    case.check(orders[0])
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_chunks_are_merged() -> None:
    case = Case(1, 1023, 2, 7, 64, 9)
    case.check(Device(9, multiprocessors=132))
    one, many = case.emulated(Device(9)), case.emulated(Device(9, multiprocessors=132))
    assert torch.equal(one[0], many[0]) and not torch.equal(one[1], many[1])

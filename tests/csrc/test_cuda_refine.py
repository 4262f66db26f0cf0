"""refine by the CUDA kernel, in its emulator, for every kind of GPU."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from accuracy import assert_accurate
from cuda_emulator import Device, refine
from torch import Tensor

from d2ls_fast.ops.refine import refine_definition

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
GPUS = {"sm_80": 8, "sm_90a": 9, "sm_100": 10}
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

    def inputs(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.pixels * 1000 + self.entries)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        b, n, j, c = self.images, self.pixels, self.heads * self.entries, self.channels
        g = self.dictionaries * b
        typed = {
            "pixels": normal(b, n, c),
            "pixel_pe": normal(n, c) if self.shared_pe else normal(b, n, c),
            "key": normal(g, j, c) * self.scale / c**0.5,
            "value": normal(g, j, c),
        }
        typed = {name: tensor.to(self.dtype) for name, tensor in typed.items()}
        vectors = {"out_bias": normal(c), "norm_weight": normal(c), "norm_bias": normal(c)}
        return {**typed, "key_bias": normal(g, j), **vectors}

    def defined(self, dtype: torch.dtype | None = None) -> Tensor:
        """The definition, in its own or the given precision."""
        tensors = self.inputs()
        if dtype is not None:
            vectors = torch.promote_types(dtype, torch.float32)
            typed = ("pixels", "pixel_pe", "key", "value")
            tensors = {name: t.to(dtype if name in typed else vectors) for name, t in tensors.items()}
        return refine_definition(**tensors, num_heads=self.heads, eps=EPS)

    def emulated(self, device: Device, tf32: bool = False) -> Tensor:
        return refine(self.inputs(), self.heads, EPS, device, tf32)

    def check(self, device: Device, tf32: bool = False) -> Tensor:
        result = self.emulated(device, tf32)
        # With TF32 the factors of both products have ten bits of mantissa, as float16's.
        plain = self.defined(FP16 if tf32 else None)
        assert_accurate(["refined"], [result], [plain], [self.defined(torch.float64)], self.dtype)
        return result


CASES = {
    "one pixel": Case(1, 1, 1, 1, 16),
    "bf16": Case(2, 133, 8, 7, 96, shared_pe=False),
    "bf16, model width": Case(1, 150, 8, 7, 256),
    "bf16, 12 entries": Case(1, 40, 4, 12, 64),
    "bf16, 19 entries, blocks of rows": Case(1, 300, 4, 19, 64),
    "bf16, 64 entries, blocks of rows": Case(1, 37, 2, 64, 48),
    "bf16, three dictionaries": Case(2, 75, 2, 5, 64, dictionaries=3, shared_pe=False),
    "fp16": Case(1, 70, 3, 8, 256, FP16),
    "fp32": Case(2, 75, 2, 7, 64, FP32, shared_pe=False),
    "fp32, model width, blocks of rows": Case(1, 70, 8, 7, 256, FP32),
    "fp32, 30 entries": Case(1, 20, 2, 30, 64, FP32),
}


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("name", CASES)
def test_against_the_definition(name: str, gpu: str) -> None:
    CASES[name].check(Device(GPUS[gpu]))


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("name", ["bf16, 19 entries, blocks of rows", "fp32, model width, blocks of rows", "bf16"])
def test_any_order_of_events_gives_the_same_bits(name: str, gpu: str) -> None:
    orders = [Device(GPUS[gpu], 1, early, descending) for early in (False, True) for descending in (False, True)]
    first, *others = (CASES[name].emulated(device) for device in orders)
    assert torch.isfinite(first).all()
    assert all(torch.equal(first, other) for other in others)


def test_chunks_do_not_change_a_bit() -> None:
    case = Case(1, 700, 2, 7, 64)
    assert torch.equal(case.check(Device(9)), case.check(Device(9, multiprocessors=132)))


@pytest.mark.parametrize("gpu", GPUS)
def test_tf32_where_allowed(gpu: str) -> None:
    case = Case(1, 50, 2, 7, 64, FP32)
    assert not torch.equal(case.check(Device(GPUS[gpu]), tf32=True), case.check(Device(GPUS[gpu])))


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_extreme_scores(dtype: torch.dtype) -> None:
    """Beyond +-1e4: one entry of a head takes all, and nothing overflows."""
    case = Case(1, 113, 2, 5, 64, dtype, scale=8e3)
    assert torch.isfinite(case.emulated(Device(9))).all()
    if dtype == FP32:
        case.check(Device(9))


def test_too_many_entries_are_refused() -> None:
    with pytest.raises(RuntimeError, match="up to 64 entries a head, got 65"):
        Case(1, 10, 1, 65, 16).emulated(Device(9))
    with pytest.raises(RuntimeError, match="up to 32 entries a head, got 33"):
        Case(1, 10, 1, 33, 16, FP32).emulated(Device(9))

"""dictionary_step by the CUDA kernels, in their emulator: groups of blocks that wait for each other."""

from __future__ import annotations

import pytest
import torch
from accuracy import assert_accurate
from cuda_emulator import Device
from cuda_emulator_step import dictionary_step
from step_calls import ALL, Shape, call, double, inputs
from torch import Tensor

from d2ls_fast.backends import backend

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# Multiprocessors: fewer than images, one block to an image, several, and so many that channels are cut too.
CASES: dict[str, tuple[Shape, torch.dtype, tuple[str, ...], int]] = {
    "one entry": (Shape(1, 1, 1, 16, 8), FP32, ALL, 1),
    "fp32": (Shape(3, 7, 2, 96, 32), FP32, ALL, 2),
    "fp32, odd heads": (Shape(2, 9, 2, 48, 38), FP32, ALL, 5),
    "fp32, model width": (Shape(1, 7, 8, 256, 128), FP32, ALL, 3),
    "fp32, one head as wide as the channels": (Shape(1, 5, 1, 144, 144), FP32, ALL, 4),
    "fp32, many entries": (Shape(1, 64, 1, 16, 4), FP32, ALL, 2),
    "look alone": (Shape(2, 5, 2, 32, 16), FP32, ("look",), 4),
    "update alone": (Shape(2, 5, 2, 32, 16), FP32, ("update",), 4),
    "no look": (Shape(2, 5, 2, 32, 16), FP32, ("update", "entries"), 4),
    "no entries": (Shape(2, 5, 2, 32, 16), FP32, ("update", "look"), 4),
    "bf16": (Shape(1, 7, 2, 128, 32), BF16, ALL, 13),
    "fp16": (Shape(2, 8, 2, 64, 32), FP16, ALL, 3),
}
ORDERS = [(early, descending) for early in (False, True) for descending in (False, True)]


def defined(tensors: dict[str, Tensor], heads: int, dtype: torch.dtype) -> dict[str, Tensor]:
    with backend("reference"):
        step = call(tensors, heads, dtype)._asdict()
    return {name: t for name, t in step.items() if t.numel() > 0 and t is not tensors["dictionary"]}


@pytest.mark.parametrize("name", CASES)
def test_against_the_definition(name: str) -> None:
    shape, dtype, parts, multiprocessors = CASES[name]
    tensors = inputs(shape, parts)
    truth = defined(double(tensors), shape.heads, torch.float64)
    plain = defined(tensors, shape.heads, dtype)
    results = dictionary_step(tensors, shape.heads, dtype, Device(9, multiprocessors))
    assert list(results) == list(truth)
    assert all(results[name].dtype == plain[name].dtype for name in results)
    assert_accurate(list(truth), *(list(part.values()) for part in (results, plain, truth)), dtype)


def test_any_order_and_number_of_blocks_gives_the_same_bits() -> None:
    shape = Shape(2, 7, 2, 48, 24)
    tensors = inputs(shape)
    devices = [Device(8, 4, *order) for order in ORDERS] + [Device(10, count) for count in (1, 3, 14)]
    first, *others = (dictionary_step(tensors, shape.heads, BF16, device) for device in devices)
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (Shape(1, 65, 1, 16, 8), "up to 64 dictionary entries, got 65"),
        (Shape(1, 2, 1, 24, 8), "multiples of 16 up to 256, got 24"),
        (Shape(1, 2, 1, 16, 264), "attention width up to 256, got 264"),
    ],
)
def test_what_it_does_not_take(shape: Shape, reason: str) -> None:
    with pytest.raises(RuntimeError, match=reason):
        dictionary_step(inputs(shape), 1, BF16, Device(9))

"""The backward of classify by the CUDA kernels, in their emulator."""

from __future__ import annotations

import itertools

import pytest
import torch
from accuracy import assert_accurate
from cuda_emulator import Device
from cuda_emulator_classify import classify_gradients
from torch import Tensor

from d2ls_fast.ops._classify import classify_definition

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
EPS = 1e-6
NAMES = ["pixels", "norm_weight", "norm_bias", "hyper"]


def inputs(
    grid: tuple[int, int], channels: int, vectors: int, dtype: torch.dtype, classes: int, batch: int = 2
) -> tuple[list[Tensor], Tensor]:
    """The arguments, and a gradient of the logits."""
    generator = torch.Generator().manual_seed(channels + vectors)
    shapes = ((batch, *grid, channels), (channels // 4,), (channels // 4,), (batch, vectors, channels // 16))
    image, *shared = (torch.randn(shape, generator=generator) for shape in shapes)
    grad = torch.randn(batch, classes, 4 * grid[0], 4 * grid[1], generator=generator)
    return [image.to(dtype), *shared], grad


def by_autograd(
    tensors: list[Tensor], grad: Tensor, prototypes: int, reduction: str, dtype: torch.dtype
) -> list[Tensor]:
    wide = torch.promote_types(dtype, FP32)
    leaves = [t.detach().to(dtype if i == 0 else wide).requires_grad_() for i, t in enumerate(tensors)]
    logits = classify_definition(*leaves, prototypes, reduction, EPS)  # type: ignore[call-arg]
    return list(torch.autograd.grad(logits, leaves, grad.to(logits.dtype)))


@pytest.mark.parametrize(
    ("grid", "channels", "classes", "prototypes", "reduction", "dtype"),
    [
        ((1, 1), 16, 1, 1, "max", BF16),
        ((3, 11), 256, 7, 1, "logsumexp", BF16),
        ((5, 3), 96, 3, 4, "logsumexp", FP16),
        ((3, 5), 64, 3, 4, "max", FP32),
        ((2, 9), 48, 2, 3, "mean", FP32),
        ((2, 5), 256, 19, 1, "max", FP32),
    ],
)
def test_gradients(
    grid: tuple[int, int], channels: int, classes: int, prototypes: int, reduction: str, dtype: torch.dtype
) -> None:
    tensors, grad = inputs(grid, channels, classes * prototypes, dtype, classes)
    if reduction == "max":  # equals share the gradient
        tensors[3][:, 2:3] = tensors[3][:, :1]
    results = classify_gradients(tensors, grad, prototypes, reduction, EPS, Device())
    truth, plain = (by_autograd(tensors, grad, prototypes, reduction, d) for d in (torch.float64, dtype))
    assert_accurate(NAMES, results, plain, truth, dtype)


def test_orders_give_the_same_bits() -> None:
    """Whatever the order of events; and a grid of another size the same pixels, and sums of other parts."""
    tensors, grad = inputs((3, 6), 256, 9, BF16, 9)
    first = classify_gradients(tensors, grad, 1, "max", EPS, Device())
    for early, descending in itertools.product((False, True), repeat=2):
        again = classify_gradients(tensors, grad, 1, "max", EPS, Device(early=early, descending=descending))
        assert all(map(torch.equal, first, again))
    other = classify_gradients(tensors, grad, 1, "max", EPS, Device(multiprocessors=2))
    assert torch.equal(first[0], other[0])
    for a, b in zip(first[1:], other[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_too_many_class_vectors_are_refused() -> None:
    tensors, grad = inputs((1, 1), 64, 401, BF16, 401, batch=1)
    with pytest.raises(RuntimeError, match="gradients of up to 400 class vectors, got 401"):
        classify_gradients(tensors, grad, 1, "max", EPS, Device())

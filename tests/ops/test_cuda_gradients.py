"""What d2ls_fast.ops._cuda makes of a backward operator's arguments, its kernels being those of the emulator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_emulator import Device
from cuda_emulator_backward import attend_backward, refine_attend_backward, refine_backward
from torch import Tensor

from d2ls_fast.ops import _cuda
from d2ls_fast.ops.attend import _plain_backward as plain_attend
from d2ls_fast.ops.attend import attend_definition
from d2ls_fast.ops.refine_attend import plain_backward as plain_refine
from d2ls_fast.ops.refine_attend import refine_attend_definition

NAMES = ("pixels", "pixel_pe", "key", "key_bias", "value", "out_bias", "norm_weight", "norm_bias")
EPS = 1e-5
HEADS = 2


def _attend(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, need_pe_grad, tf32 = arguments
    gradients = list(attend_backward(*tensors, Device(9), need_pe_grad=need_pe_grad, tf32=tf32))
    return _without_encoding(gradients, need_pe_grad)


def _refine(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, grad, num_heads, eps, need_pe_grad, tf32 = arguments
    inputs = dict(zip(NAMES, tensors, strict=True))
    gradients = refine_backward(inputs, grad, num_heads, eps, Device(9), need_pe_grad=need_pe_grad, tf32=tf32)
    return _without_encoding([gradients[name] for name in NAMES], need_pe_grad)


def _refine_attend(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, log_sum_exp, grad, grad_context, delta, num_heads, eps, need_pe_grad, _ = arguments
    names = (*NAMES, "query")
    gradients = refine_attend_backward(
        dict(zip(names, tensors, strict=True)), log_sum_exp, grad, grad_context, delta, num_heads, eps, Device(9),
        need_pe_grad=need_pe_grad,
    )  # fmt: skip
    return _without_encoding([gradients[name] for name in names], need_pe_grad)


def _without_encoding(gradients: list[Tensor], need_pe_grad: bool) -> tuple[Tensor, ...]:
    if not need_pe_grad:
        gradients[1] = gradients[1].new_empty((0,))
    return tuple(gradients)


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kernel in (("attend", _attend), ("refine", _refine), ("refine_attend", _refine_attend)):
        monkeypatch.setattr(torch.ops.d2ls_fast, f"cuda_{name}_backward", kernel, raising=False)


def _inputs(expanded_pe: bool) -> tuple[list[Tensor], Tensor]:
    """The arguments of refine for two images and dictionaries, and a query."""
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    pe = normal(20, 32).expand(2, 20, 32) if expanded_pe else normal(2, 20, 32)
    rows = [normal(2, 6, 32) / 6, normal(2, 6), normal(2, 6, 32)]
    return [normal(2, 20, 32), pe, *rows, normal(32), normal(32), normal(32)], normal(2, 5, 32) / 6


def _same(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for result, plain in zip(results, expected, strict=True):
        torch.testing.assert_close(result, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("need_pe_grad", [False, True])
def test_attend(need_pe_grad: bool) -> None:
    (pixels, pe, *_), query = _inputs(expanded_pe=not need_pe_grad)
    outputs = attend_definition(pixels, pe, query)
    arguments = (pixels, pe, query, *outputs, *(torch.randn_like(t) for t in outputs), need_pe_grad)
    _same(_cuda.attend_backward(*arguments), plain_attend(*arguments))


@pytest.mark.parametrize("need_pe_grad", [False, True])
def test_refine(need_pe_grad: bool) -> None:
    inputs, _ = _inputs(expanded_pe=not need_pe_grad)
    grad = torch.randn_like(inputs[0])
    arguments = (*inputs, None, None, None, grad, None, None, HEADS, EPS, need_pe_grad)
    _same(_cuda.refine_backward(*arguments), plain_refine(*arguments))


@pytest.mark.parametrize("need_pe_grad", [False, True])
def test_refine_attend(need_pe_grad: bool) -> None:
    inputs, query = _inputs(expanded_pe=not need_pe_grad)
    outputs = refine_attend_definition(*inputs, query, HEADS, EPS)
    grads = [torch.randn_like(output) for output in outputs]
    arguments = (*inputs, query, *outputs[1:], *grads, HEADS, EPS, need_pe_grad)
    _same(_cuda.refine_backward(*arguments), plain_refine(*arguments))

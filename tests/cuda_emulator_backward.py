"""The CUDA kernels of the backward passes on the CPU; see cuda_emulator."""

from __future__ import annotations

import ctypes

import torch
from cuda_emulator import TF32, TYPES, Device, RefineCall, _address, _checked, _refine_call, library
from torch import Tensor

_ATTEND_TENSORS = (
    "x",
    "pe",
    "query",
    "grad_context",
    "log_sum_exp",
    "delta",
    "add",
    "grad_x",
    "grad_pe",
    "grad_query",
    "through_pe",
)


class AttendBackwardCall(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("batch", ctypes.c_int64),
        ("pixels", ctypes.c_int64),
        ("channels", ctypes.c_int),
        ("rows", ctypes.c_int),
        ("pe_images", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in _ATTEND_TENSORS),
    ]


def nan_like(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, float("nan"))


def attend_backward(
    pixels: Tensor, pixel_pe: Tensor, query: Tensor, log_sum_exp: Tensor, grad: Tensor, delta: Tensor, device: Device,
    *, add: Tensor | None = None, need_pe_grad: bool = True, tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of pixels, encoding and query by the CUDA kernels, into memory that starts as NaN."""
    batch, count, channels = pixels.shape
    results = nan_like(pixels), nan_like(pixel_pe), nan_like(query)
    tensors = (pixels, pixel_pe, query, grad, log_sum_exp, delta)
    call = AttendBackwardCall(
        TF32 if tf32 else TYPES[pixels.dtype], batch, count, channels, query.shape[1],
        1 if pixel_pe.dim() == 2 else batch, *map(_address, tensors), None if add is None else _address(add),
        _address(results[0]), _address(results[1]) if need_pe_grad else None, _address(results[2]), None,
    )  # fmt: skip
    _checked(library().d2ls_emulate_attend_backward, device, call)
    return results


_REFINE_GRADIENTS = ("pixels", "pixel_pe", "key", "value", "key_bias", "out_bias", "norm_weight", "norm_bias")


class RefineBackwardCall(ctypes.Structure):
    _fields_ = [
        ("refine", RefineCall),
        *((name, ctypes.c_void_p) for name in ("grad_refined", "through_pe", *_REFINE_GRADIENTS)),
    ]


def _refine_backward_call(
    arguments: dict[str, Tensor], grad: Tensor, num_heads: int, eps: float, results: dict[str, Tensor],
    need_pe_grad: bool, tf32: bool,
) -> RefineBackwardCall:  # fmt: skip
    return RefineBackwardCall(
        _refine_call(arguments, num_heads, eps, tf32, grad), _address(grad), None,
        *(None if name == "pixel_pe" and not need_pe_grad else _address(results[name]) for name in _REFINE_GRADIENTS),
    )  # fmt: skip


def refine_backward(
    arguments: dict[str, Tensor], grad: Tensor, num_heads: int, eps: float, device: Device, *,
    need_pe_grad: bool = True, tf32: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """The gradients of refine's ``arguments`` by the CUDA kernels, into memory that starts as NaN."""
    results = {name: nan_like(tensor) for name, tensor in arguments.items()}
    call = _refine_backward_call(arguments, grad, num_heads, eps, results, need_pe_grad, tf32)
    _checked(library().d2ls_emulate_refine_backward, device, call)
    return results


class RefineAttendBackwardCall(ctypes.Structure):
    _fields_ = [
        ("refine", RefineBackwardCall),
        ("queries", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("query", "grad_context", "log_sum_exp", "delta", "grad_query")),
    ]


def refine_attend_backward(
    arguments: dict[str, Tensor], log_sum_exp: Tensor, grad_refined: Tensor, grad_context: Tensor, delta: Tensor,
    num_heads: int, eps: float, device: Device, *, need_pe_grad: bool = True,
) -> dict[str, Tensor]:  # fmt: skip
    """The gradients of refine_attend's ``arguments``, among which is the query."""
    query = arguments["query"]
    results = {name: nan_like(tensor) for name, tensor in arguments.items()}
    call = RefineAttendBackwardCall(
        _refine_backward_call(arguments, grad_refined, num_heads, eps, results, need_pe_grad, False), query.shape[1],
        *map(_address, (query, grad_context, log_sum_exp, delta, results["query"])),
    )  # fmt: skip
    _checked(library().d2ls_emulate_refine_attend_backward, device, call)
    return results

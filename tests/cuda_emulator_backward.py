"""The CUDA kernels of the backward passes on the CPU; see cuda_emulator."""

from __future__ import annotations

import ctypes

import torch
from cuda_emulator import TF32, TYPES, Device, _address, _checked, library
from torch import Tensor

_ATTEND_TENSORS = ("x", "pe", "query", "grad_context", "log_sum_exp", "delta", "add", "grad_x", "grad_pe", "grad_query")


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
        _address(results[0]), _address(results[1]) if need_pe_grad else None, _address(results[2]),
    )  # fmt: skip
    _checked(library().d2ls_emulate_attend_backward, device, call)
    return results

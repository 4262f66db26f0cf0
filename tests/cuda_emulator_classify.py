"""The CUDA kernels of classify's backward on the CPU, as cuda_emulator runs them."""

from __future__ import annotations

import ctypes

import torch
from cuda_emulator import TYPES, ClassifyCall, Device, _address, _checked, library
from torch import Tensor


class Gradients(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("x", "norm_weight", "norm_bias", "hyper")]


class ClassifyGradientsCall(ctypes.Structure):
    _fields_ = [("of", ClassifyCall), ("grad_logits", ctypes.c_void_p), ("gradients", Gradients)]


def classify_call(tensors: list[Tensor], prototypes: int, reduction: str, eps: float) -> ClassifyCall:
    image, _, _, hyper = tensors
    batch, height, width, channels = image.shape
    return ClassifyCall(
        TYPES[image.dtype], ("logsumexp", "max", "mean").index(reduction), batch, height, width, channels,
        hyper.shape[1] // prototypes, prototypes, eps, *map(_address, tensors), None, None, None,
    )  # fmt: skip


def gradients_like(tensors: list[Tensor]) -> list[Tensor]:
    """Memory for the gradients, which starts as NaN."""
    return [torch.full_like(t, float("nan")) for t in tensors]


def classify_gradients(
    tensors: list[Tensor], grad_logits: Tensor, prototypes: int, reduction: str, eps: float, device: Device
) -> list[Tensor]:
    """Gradients of image, norm_weight, norm_bias and hyper by the CUDA kernels."""
    results = gradients_like(tensors)
    call = ClassifyGradientsCall(
        classify_call(tensors, prototypes, reduction, eps), _address(grad_logits), Gradients(*map(_address, results))
    )
    _checked(library().d2ls_emulate_classify_gradients, device, call)
    return results
